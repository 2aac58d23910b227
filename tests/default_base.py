"""What the embedded default base must be on every machine."""

NAME = "smollm2-135m-instruct"
FINGERPRINT = "c2756df48b17d00803e52863b262ded4072322c2a7784e9af8f02238d45ec569"
TOKENIZER_HASH = "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b"
