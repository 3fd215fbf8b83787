"""Speech: a text in one of the lab's voices becomes a WAV file, made by espeak-ng in a process of its own."""
