"""Vast.ai's API, as far as the lab uses it."""

from __future__ import annotations

import base64
import itertools
import json
import shlex
from typing import Any, ClassVar

from tests.clouds.cloud import Cloud, Instance, Refusal, Stock
from tests.clouds.http import Request, Response

ERRORS = {
    "unauthorised": (401, "auth_error", "Invalid user key"),
    "sold_out": (404, "invalid_args", "error 404/3603: no_such_ask Instance type by id 1 is not available."),
    "gone": (410, "no_such_ask", "error 410/3907: no_such_ask Instance type 1 is no longer available."),
    "broken": (500, "internal", "internal error"),
    "quota": (400, "invalid_args", "error 400/3467: Invalid args: too many instances"),
    "money": (400, "insufficient_credit", "Your account lacks credit."),
    "absent": (404, "not_found", "Instance not found"),
    "wrong": (400, "invalid_args", "error 400/3467: Invalid args"),
    "price": (400, "invalid_price", "error 400/3505: Invalid price: the bid is below the minimum"),
}


class VastCloud(Cloud):
    """Vast: a stock's id is the number of an ask; bids, a disk that costs until the instance is destroyed, pages."""

    vendor: ClassVar[str] = "vast"

    @staticmethod
    def usual_stock() -> list[Stock]:
        return [
            Stock("7001", "RTX 4090", 350_000, "Texas, US", least_bid_micros=150_000, disk_micros_per_gb_month=150_000, secure=False),
            Stock("7002", "RTX 4090", 401_234, "Sweden, SE", least_bid_micros=160_000, disk_micros_per_gb_month=200_000, secure=False),
            Stock("7003", "A100 PCIE", 1_100_000, "France, FR", gpu_memory_gb=40, disk_micros_per_gb_month=120_000, secure=False),
            Stock("7008", "H100 SXM", 16_000_000, "Utah, US", gpus=8, gpu_memory_gb=80, least_bid_micros=9_000_000,
                  disk_micros_per_gb_month=120_000, secure=False),
        ]  # fmt: skip

    def name(self, request: Request) -> str:
        match request.method, request.path:
            case "POST", "/api/v0/bundles":
                return "listings"
            case "GET", "/api/v1/instances":
                return "list"
            case "GET", "/api/v0/charges":
                return "billed"
            case "GET", "/api/v0/users/current":
                return "account"
            case "PUT", path if path.startswith("/api/v0/asks/"):
                return "launch"
            case "GET", path if path.startswith("/api/v0/instances/"):
                return "status"
            case "DELETE", path if path.startswith("/api/v0/instances/"):
                return "terminate"
        return "unknown"

    def answer(self, call: str, request: Request) -> Response:
        match call:
            case "listings":
                return Response(200, {"offers": [_ask(stock) for stock in self.stock.values() if stock.free > 0]})
            case "list":
                return Response(200, self._page(request))
            case "status":
                return Response(200, {"instances": self._told(self._find(request))})
            case "launch":
                return Response(200, {"success": True, "new_contract": int(self._launch(request).id)})
            case "terminate":
                self.end(self._find(request))
                return Response(200, {"success": True, "msg": "Instance destroyed successfully"})
            case "billed":
                return Response(200, self._charges(request))
            case "account":
                return Response(200, {"id": self.account_id, "key_id": 1, "email": "owner@lab.example", "balance": 10.0})
        raise Refusal(self.refusal("absent", request))

    def empty(self, call: str) -> Response:
        if call == "listings":
            return Response(200, {"offers": []})
        return Response(200, {"success": True, "next_token": None, "instances_found": 0, "total_instances": 0, "instances": []})

    def refusal(self, reason: str, request: Request) -> Response:
        if reason == "rate":
            return Response(429, {"detail": "API requests too frequent endpoint threshold=4.5"}, {"Retry-After": "5"})
        status, error, said = ERRORS[reason]
        if reason == "unauthorised" and request.path == "/api/v0/bundles":
            status = 404
        return Response(status, {"success": False, "error": error, "msg": said}, documented=reason != "money")

    def new_id(self) -> str:
        return str(9_000_000 + next(self._numbers))

    def _launch(self, request: Request) -> Instance:
        body, stock = request.body, self.stock.get(request.path.rpartition("/")[2])
        if stock is None:
            raise Refusal(self.refusal("sold_out", request))
        if stock.free < 1:
            raise Refusal(self.refusal("gone", request))
        bid = round(body["price"] * 1e6) if "price" in body else None
        if bid is not None and (stock.least_bid_micros is None or bid < stock.least_bid_micros):
            raise Refusal(self.refusal("price", request))
        return self.rent(
            stock, request, tag=body["label"], image=body["image"], environment=_environment(body["env"]), disk_gb=body["disk"], bid_micros=bid
        )

    def _find(self, request: Request) -> Instance:
        found = self.seen(request.path.rpartition("/")[2])
        if found is None or found.state == "gone":
            raise Refusal(self.refusal("absent", request))
        return found

    def _page(self, request: Request) -> dict[str, Any]:
        living = sorted(self.shown(), key=lambda instance: int(instance.id))
        begin = int(base64.b64decode(request.query["after_token"])) if "after_token" in request.query else 0
        end = begin + min(int(request.query.get("limit", 25)), 25)
        token = base64.b64encode(str(end).encode()).decode() if end < len(living) else None
        shown = [self._told(instance) for instance in living[begin:end]]
        return {
            "success": True, "instances_found": len(shown), "total_instances": len(living), "label_counts": {}, "next_token": token,
            "instances": shown,
        }  # fmt: skip

    def _told(self, instance: Instance) -> dict[str, Any]:
        stopped = instance.state == "stopped"
        actual = {"booting": "loading", "running": "running", "stopped": "exited", "ending": "running"}[instance.state]
        total = instance.disk_micros_per_hour + (0 if stopped else instance.micros_per_hour)
        return {
            "id": int(instance.id), "label": instance.tag, "actual_status": actual, "cur_state": "stopped" if stopped else "running",
            "intended_status": "stopped" if instance.state == "ending" else "running", "gpu_name": instance.stock.gpu, "is_bid": instance.bid,
            "num_gpus": instance.stock.gpus, "geolocation": instance.stock.region, "image_uuid": instance.image,
            "dph_base": instance.micros_per_hour / 1e6, "dph_total": total / 1e6, "start_date": instance.created_at.timestamp(),
            "min_bid": (instance.stock.least_bid_micros or 0) / 1e6,
        }  # fmt: skip

    def _charges(self, request: Request) -> dict[str, Any]:
        day = json.loads(request.query["select_filters"])["day"]
        rows = []
        for instance in self.instances.values():
            begin, end = instance.created_at.timestamp(), (instance.ended_at or self.clock()).timestamp()
            if begin <= day["lte"] and end >= day["gte"]:
                rows.append({
                    "start": int(begin), "end": int(end), "type": "instance", "source": f"instance-{instance.id}",
                    "description": f"Instance {instance.id} Charges", "amount": round(self.bill(instance.id) / 1e6, 3),
                    "metadata": {"label": instance.tag}, "items": [],
                })  # fmt: skip
        return {"success": True, "count": len(rows), "total": len(rows), "next_token": None, "results": rows}


def _ask(stock: Stock) -> dict[str, Any]:
    disk = stock.disk_micros_per_gb_month / 1e6
    return {
        "id": int(stock.id), "ask_contract_id": int(stock.id), "gpu_name": stock.gpu, "num_gpus": stock.gpus,
        "gpu_ram": stock.gpu_memory_gb * 1024, "cpu_cores": stock.cores * 2, "cpu_cores_effective": float(stock.cores),
        "cpu_ram": stock.memory_gb * 2 * 1024, "disk_space": float(stock.disk_gb), "storage_cost": disk,
        "dph_base": stock.micros_per_hour / 1e6, "dph_total": (stock.micros_per_hour + stock.disk_micros_per_gb_month * 8 / 720) / 1e6,
        "min_bid": stock.least_bid_micros / 1e6 if stock.least_bid_micros is not None else None, "inet_up_cost": 0.00456,
        "inet_down_cost": 0.00123, "geolocation": stock.region, "rentable": True, "rented": False, "verification": "verified",
    }  # fmt: skip


def _environment(flags: str) -> dict[str, str]:
    """Return variables that are given as Docker's `-e NAME=VALUE` flags."""
    words = shlex.split(flags)
    pairs = [word for flag, word in itertools.pairwise(words) if flag == "-e"]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
