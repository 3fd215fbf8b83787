"""RunPod's API, as far as the lab uses it: v2, and of v1 the launch of spot pods. Both know the same pods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from tests.clouds.cloud import Cloud, Instance, Refusal, Stock
from tests.clouds.http import Request, Response

STATES = {"booting": "PROVISIONING", "running": "RUNNING", "stopped": "EXITED", "ending": "EXITED"}
ERRORS = {
    "unauthorised": (401, "Unauthorized", "invalid API key"),
    "sold_out": (400, "Bad Request", "There are no longer any instances available with the requested specifications."),
    "broken": (500, "Internal Server Error", "something went wrong"),
    "quota": (400, "Bad Request", "This would exceed your spend limit of $80.00 per hour."),
    "money": (402, "Payment Required", "Insufficient balance."),
    "absent": (404, "Not Found", "pod not found"),
    "wrong": (422, "Unprocessable Entity", "the body does not match the contract"),
    "rate": (429, "Too Many Requests", "rate limit exceeded"),
}


class RunPodCloud(Cloud):
    """RunPod: a stock's id is `GPU@datacentre`; it does not tell spot prices, and forgets a pod when it is deleted."""

    vendor: ClassVar[str] = "runpod"
    deleted: ClassVar[tuple[str, ...]] = ("ending", "gone")

    @staticmethod
    def usual_stock() -> list[Stock]:
        return [
            Stock("NVIDIA L4@US-KS-2", "NVIDIA L4", 430_000, "US-KS-2", free=2, least_bid_micros=220_000, disk_micros_per_gb_month=100_000),
            Stock("NVIDIA L4@EU-RO-1", "NVIDIA L4", 430_000, "EU-RO-1", free=1, disk_micros_per_gb_month=100_000),
            Stock("NVIDIA A100 80GB PCIe@US-KS-2", "NVIDIA A100 80GB PCIe", 1_640_000, "US-KS-2", gpu_memory_gb=80,
                  least_bid_micros=820_000, disk_micros_per_gb_month=100_000),
            Stock("NVIDIA GeForce RTX 4090@US-TX-3", "NVIDIA GeForce RTX 4090", 340_000, "US-TX-3", secure=False,
                  disk_micros_per_gb_month=100_000),
        ]  # fmt: skip

    def name(self, request: Request) -> str:
        match request.method, request.path:
            case "GET", "/v2/catalog/gpus":
                return "listings"
            case ("GET", "/v2/pods"):
                return "list"
            case ("POST", "/v2/pods") | ("POST", "/v1/pods"):
                return "launch"
            case "GET", "/v2/billing/pods":
                return "billed"
            case "GET", path if path.startswith("/v2/pods/"):
                return "status"
            case "DELETE", path if path.startswith("/v2/pods/"):
                return "terminate"
        return "unknown"

    def answer(self, call: str, request: Request) -> Response:
        match call:
            case "listings":
                return Response(200, {"gpus": self._gpus(request.query["cloud"])})
            case "list":
                return Response(200, {"pods": [self._told(i) for i in self.shown() if i.state not in self.deleted]})
            case "status":
                return Response(200, self._told(self._find(request)))
            case "launch":
                return self._launch(request)
            case "terminate":
                self.end(self._find(request))
                return Response(204)
            case "billed":
                return Response(200, self._charges(request))
        raise Refusal(self.refusal("absent", request))

    def empty(self, call: str) -> Response:
        return Response(200, {"gpus" if call == "listings" else "pods": []})

    def refusal(self, reason: str, request: Request) -> Response:
        status, title, detail = ERRORS[reason]
        headers = {"Retry-After": "12"} if reason == "rate" else {}
        if request.path.startswith("/v1/"):  # whose errors have no documented body
            return Response(400 if status == 402 else status, {"error": detail, "status": status}, headers)
        return Response(status, {"title": title, "status": status, "detail": detail}, headers, kind="application/problem+json")

    def _launch(self, request: Request) -> Response:
        body, spot = request.body, request.path.startswith("/v1/")
        gpu = body["gpuTypeIds"][0] if spot else body["gpu"]["id"]
        places = body.get("dataCenterIds") or [s.region for s in self.stock.values() if s.gpu == gpu]
        fitting = [s for s in self.stock.values() if s.gpu == gpu and s.region in places]
        if not fitting:
            raise Refusal(self.refusal("sold_out", request))
        stock = next((s for s in fitting if s.free > 0), fitting[0])
        started = self.rent(
            stock, request, tag=body["name"], image=body["imageName" if spot else "image"], environment=body["env"],
            disk_gb=body["containerDiskInGb" if spot else "disk"],
            bid_micros=(stock.least_bid_micros or stock.micros_per_hour) if spot and body["interruptible"] else None,
        )  # fmt: skip
        if not spot:
            return Response(201, self._told(started))
        return Response(201, {
            "id": started.id, "name": started.tag, "image": started.image, "desiredStatus": "RUNNING", "interruptible": started.bid,
            "costPerHr": started.micros_per_hour / 1e6, "env": started.environment, "containerDiskInGb": started.disk_gb,
        })  # fmt: skip

    def _find(self, request: Request) -> Instance:
        found = self.seen(request.path.rpartition("/")[2])
        if found is None or found.state in self.deleted:
            raise Refusal(self.refusal("absent", request))
        return found

    def _gpus(self, cloud: str) -> list[dict[str, Any]]:
        gpus: dict[str, dict[str, Any]] = {}
        for stock in self.stock.values():
            here = stock.secure == (cloud == "SECURE")
            price = stock.micros_per_hour / stock.gpus / 1e6
            gpu = gpus.setdefault(stock.gpu, {
                "id": stock.gpu, "name": stock.gpu.removeprefix("NVIDIA "), "pool": None, "manufacturer": "NVIDIA", "memory": stock.gpu_memory_gb,
                "secure": False, "community": False, "price": {"secure": 0.0, "community": 0.0}, "maxCount": {"secure": 8, "community": 4},
                "availability": "NONE",
            })  # fmt: skip
            kind = "secure" if stock.secure else "community"
            gpu[kind] = True
            gpu["price"][kind] = price
            if here and stock.free > 0:
                gpu["availability"] = "LOW"
            if here:
                level = "LOW" if stock.free > 0 else "NONE"
                gpu.setdefault("dataCenters", []).append({"id": stock.region, "name": stock.region, "availability": level})
        return list(gpus.values())

    def _told(self, instance: Instance) -> dict[str, Any]:
        running = instance.state == "running"
        return {
            "id": instance.id, "name": instance.tag, "status": STATES[instance.state], "actions": ["terminate"], "image": instance.image,
            "args": "", "disk": instance.disk_gb, "mounts": {}, "ports": [], "env": instance.environment, "registry": None,
            "gpu": {"id": instance.stock.gpu, "count": instance.stock.gpus}, "cloud": "SECURE" if instance.stock.secure else "COMMUNITY",
            "dataCenterId": instance.stock.region, "cudaVersion": None, "ssh": {"proxy": None, "direct": None}, "template": None,
            "cost": 0.0 if instance.state == "stopped" else instance.micros_per_hour / 1e6, "locked": False,
            "globalNetworking": {"enabled": False}, "runtime": {"uptime": 1} if running else None,
            "createdAt": _time(instance.created_at), "startedAt": _time(instance.running_at) if instance.running_at else None,
        }  # fmt: skip

    def _charges(self, request: Request) -> dict[str, Any]:
        since = datetime.fromisoformat(request.query["startTime"]).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        now = self.clock()
        until = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        asked = request.query["podId"]
        window = {"startTime": _time(since), "endTime": _time(until)}
        records: list[dict[str, Any]] = []
        if asked in self.instances:
            total = self.bill(asked) / 1e6
            amounts = {"totalAmount": total, "gpuAmount": total, "cpuAmount": 0.0, "diskAmount": 0.0}
            records = [{**window, "podId": asked, **amounts}]
        totals = {
            name: sum(record[name] for record in records) for name in ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
        }
        return {"records": records, "metadata": {
            "query": {**window, "bucketSize": request.query["bucketSize"], "podId": asked}, "recordCount": len(records),
            "uniquePodCount": len(records), "totals": totals,
        }}  # fmt: skip


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
