from agents.gguf_factory.agent import FactoryAgent

if __name__ == "__main__":
    FactoryAgent.main()
