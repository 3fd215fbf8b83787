import os

from agents.gpu_orchestrator.agent import GpuOrchestratorAgent
from agents.gpu_orchestrator.clouds import open_clouds, open_sellers
from bus import Wiring
from configs import load


class Renting(GpuOrchestratorAgent):
    """Quotes jobs on machines that are online or for rent, rents what is chosen, and leases slots."""

    def __init__(self, wiring: Wiring) -> None:
        configs = load()
        clouds = open_clouds(wiring, configs, os.environ)
        super().__init__(wiring, configs, clouds, clouds.providers if clouds else open_sellers(os.environ))


if __name__ == "__main__":
    Renting.main()
