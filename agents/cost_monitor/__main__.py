from agents.cost_monitor.agent import CostMonitorAgent

if __name__ == "__main__":
    CostMonitorAgent.main()
