from agents.conductor.agent import ConductorAgent

if __name__ == "__main__":
    ConductorAgent.main()
