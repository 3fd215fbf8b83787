"""Lambda's API, as far as the lab uses it."""

from __future__ import annotations

import itertools
import re
import shlex
from datetime import datetime
from typing import Any, ClassVar

from tests.clouds.cloud import Cloud, Instance, Refusal, Stock
from tests.clouds.http import Request, Response

ERRORS = {
    "unauthorised": (401, "global/invalid-api-key"),
    "sold_out": (400, "instance-operations/launch/insufficient-capacity"),
    "broken": (500, "global/unknown"),
    "quota": (400, "global/quota-exceeded"),
    "money": (403, "global/account-inactive"),
    "absent": (404, "global/object-does-not-exist"),
    "wrong": (400, "global/invalid-parameters"),
    "rate": (429, "global/unknown"),
}
STATES = {"booting": "booting", "running": "active", "ending": "terminating", "stopped": "preempted", "gone": "terminated"}


class LambdaCloud(Cloud):
    """Lambda: a stock's id is `type@region`; no spot, no stop, no bill, one launch per `launch_gap_s` seconds."""

    vendor: ClassVar[str] = "lambda"
    launch_gap_s: float | None = None
    """12 at the real one; None: no limit, for tests that launch one after another."""
    ssh_keys: tuple[str, ...] = ("laptop",)
    _launched_at: datetime | None = None

    @staticmethod
    def usual_stock() -> list[Stock]:
        return [
            Stock("gpu_1x_a10@us-west-1", "A10", 750_000, "us-west-1", gpu_memory_gb=24, free=2, cores=30, memory_gb=200, disk_gb=1400),
            Stock("gpu_1x_a10@us-east-1", "A10", 750_000, "us-east-1", gpu_memory_gb=24, free=1, cores=30, memory_gb=200, disk_gb=1400),
            Stock("gpu_8x_v100@us-south-1", "V100", 4_400_000, "us-south-1", gpus=8, gpu_memory_gb=16, cores=92, memory_gb=448, disk_gb=5900),
        ]  # fmt: skip

    def name(self, request: Request) -> str:
        match request.method, request.path.removeprefix("/api/v1"):
            case "GET", "/instance-types":
                return "listings"
            case "GET", "/instances":
                return "list"
            case "GET", "/ssh-keys":
                return "keys"
            case "POST", "/instance-operations/launch":
                return "launch"
            case "POST", "/instance-operations/terminate":
                return "terminate"
            case "GET", path if path.startswith("/instances/"):
                return "status"
        return "unknown"

    def answer(self, call: str, request: Request) -> Response:
        match call:
            case "listings":
                return _data(self._types())
            case "list":
                return _data([self._told(instance) for instance in self.shown()])
            case "keys":
                return _data([{"id": f"{n:032x}", "name": name, "public_key": "ssh-ed25519 AAAA"} for n, name in enumerate(self.ssh_keys)])
            case "status":
                return _data(self._told(self._find(request.path.rpartition("/")[2], request)))
            case "launch":
                return _data({"instance_ids": [self._launch(request).id]})
            case "terminate":
                ended = [self._find(id, request) for id in request.body["instance_ids"]]
                for instance in ended:
                    self.end(instance)
                return _data({"terminated_instances": [self._told(instance) for instance in ended]})
        raise Refusal(self.refusal("absent", request))

    def empty(self, call: str) -> Response:
        return _data({} if call == "listings" else [])

    def refusal(self, reason: str, request: Request) -> Response:
        status, code = ERRORS[reason]
        headers = {"Retry-After": "2"} if reason == "rate" else {}
        return Response(status, {"error": {"code": code, "message": f"{reason}.", "suggestion": None}}, headers)

    def _launch(self, request: Request) -> Instance:
        body = request.body
        now = self.clock()
        if self.launch_gap_s is not None and self._launched_at and (now - self._launched_at).total_seconds() < self.launch_gap_s:
            raise Refusal(Response(429, self.refusal("rate", request).body))
        if body["ssh_key_names"][0] not in self.ssh_keys:
            raise Refusal(self.refusal("absent", request))
        stock = self.stock.get(f"{body['instance_type_name']}@{body['region_name']}")
        if stock is None:
            raise Refusal(self.refusal("wrong", request))
        image, environment = run_command(body.get("user_data", ""))
        started = self.rent(stock, request, tag=body.get("name", ""), image=image, environment=environment, disk_gb=stock.disk_gb)
        self._launched_at = now
        return started

    def _find(self, id: str, request: Request) -> Instance:
        found = self.seen(id)
        if found is None:
            raise Refusal(self.refusal("absent", request))
        return found

    def _types(self) -> dict[str, Any]:
        types: dict[str, Any] = {}
        for stock in self.stock.values():
            name = stock.id.partition("@")[0]
            entry = types.setdefault(name, {"instance_type": _type(stock), "regions_with_capacity_available": []})
            if stock.free > 0:
                entry["regions_with_capacity_available"].append({"name": stock.region, "description": stock.region})
        return types

    def _told(self, instance: Instance) -> dict[str, Any]:
        told = {
            "id": instance.id, "status": STATES[instance.state], "ssh_key_names": list(self.ssh_keys[:1]), "file_system_names": [],
            "region": {"name": instance.stock.region, "description": instance.stock.region},
            "instance_type": _type(instance.stock, instance.micros_per_hour), "ip": None, "hostname": None,
            "jupyter_token": None, "jupyter_url": None,
        }  # fmt: skip
        return {**told, "name": instance.tag} if instance.tag else told


def _data(data: object) -> Response:
    return Response(200, {"data": data})


def _type(stock: Stock, micros_per_hour: int | None = None) -> dict[str, Any]:
    price = stock.micros_per_hour if micros_per_hour is None else micros_per_hour
    assert price % 10_000 == 0, "Lambda's prices are whole cents"
    return {
        "name": stock.id.partition("@")[0], "description": f"{stock.gpus}x {stock.gpu} ({stock.gpu_memory_gb} GB PCIe)",
        "price_cents_per_hour": price // 10_000,
        "specs": {"vcpus": stock.cores, "memory_gib": stock.memory_gb, "storage_gib": stock.disk_gb},
    }  # fmt: skip


def run_command(script: str) -> tuple[str, dict[str, str]]:
    """Return image and environment of the one `docker run` in a cloud-init script, read as a shell would."""
    command = next((line for line in re.split(r"\n(?=\w)", script) if "docker run" in line), "")
    words = shlex.split(command)
    environment = {}
    for option, value in itertools.pairwise(words):
        if option == "--env":
            name, _, text = value.partition("=")
            environment[name] = text
    return (words[-1] if words else ""), environment
