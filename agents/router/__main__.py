from agents.router.agent import RouterAgent

if __name__ == "__main__":
    RouterAgent.main()
