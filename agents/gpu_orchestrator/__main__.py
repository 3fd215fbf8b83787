from agents.gpu_orchestrator.agent import GpuOrchestratorAgent

if __name__ == "__main__":
    GpuOrchestratorAgent.main()
