from agents.emotion.agent import EmotionAgent

if __name__ == "__main__":
    EmotionAgent.main()
