from agents.tts.agent import SpeechAgent

if __name__ == "__main__":
    SpeechAgent.main()
