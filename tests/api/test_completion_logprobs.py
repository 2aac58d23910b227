"""The prompt and its log-probabilities in the answer, through the openai package."""

from typing import Any

import openai
import pytest

from tests.api.completions import PROMPT, TOKEN_IDS, TOKENIZER, columns, text_of


class TestEcho:
    """The prompt in front of the answer, with log-probabilities of its tokens."""

    def test_text_comes_back_as_sent(self, client: openai.OpenAI) -> None:
        prompt = "  Zürich's <|im_start|>café\n\n🎉 "
        assert text_of(client, "news", prompt=prompt, echo=True).startswith(prompt)

    def test_token_ids_come_back_as_text(self, client: openai.OpenAI) -> None:
        token_ids = TOKENIZER.encode("Zürich<|im_end|> 🎉").ids
        assert text_of(client, "news", prompt=token_ids, echo=True).startswith(
            "Zürich<|im_end|> 🎉"
        )

    @pytest.mark.parametrize("as_text", [True, False])
    def test_prompt_alone_has_logprobs(self, client: openai.OpenAI, as_text: bool) -> None:
        prompt = "Zürich's insurer café"
        token_ids: list[int] = TOKENIZER.encode(prompt).ids
        answer = client.completions.create(
            model="news",
            prompt=prompt if as_text else token_ids,
            max_tokens=0,
            echo=True,
            logprobs=2,
        )
        choice = answer.choices[0]
        assert choice.text == prompt
        assert choice.finish_reason == "length"
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert len(logprobs.tokens) == len(token_ids)
        assert logprobs.token_logprobs[0] is None
        assert logprobs.top_logprobs[0] is None
        assert all(-50 < value <= 0 for value in logprobs.token_logprobs[1:])
        assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs[1:])
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 0

    def test_the_prompts_logprobs_are_those_of_generating_it(self, client: openai.OpenAI) -> None:
        fields: dict[str, Any] = {"model": "news", "temperature": 0, "logprobs": 0}
        prompt: list[int] = TOKENIZER.encode(PROMPT).ids
        generated = client.completions.create(prompt=prompt, max_tokens=6, **fields)
        tokens, values = columns(generated.choices[0])
        whole = prompt + [TOKEN_IDS[token] for token in tokens]
        echoed = client.completions.create(prompt=whole, max_tokens=0, echo=True, **fields)
        echoed_tokens, echoed_values = columns(echoed.choices[0])
        assert echoed_tokens[-6:] == tokens
        assert echoed_values[-6:] == pytest.approx(values, abs=0.05)

    def test_without_logprobs_echo_is_text_alone(self, client: openai.OpenAI) -> None:
        answer = client.completions.create(model="news", prompt="a", max_tokens=0, echo=True)
        assert answer.choices[0].text == "a"
        assert answer.choices[0].logprobs is None


class TestLogprobs:
    """Four columns of equal length, and offsets that point into the text."""

    def test_offsets_point_at_the_tokens(self, client: openai.OpenAI) -> None:
        for seed in range(8):
            choice = client.completions.create(
                model="news",
                prompt="Zürich's café 🎉 said",
                max_tokens=40,
                temperature=1.5,
                seed=seed,
                echo=True,
                logprobs=3,
            ).choices[0]
            logprobs = choice.logprobs
            assert logprobs is not None
            assert logprobs.tokens is not None
            assert logprobs.text_offset is not None
            assert logprobs.text_offset == sorted(logprobs.text_offset)
            for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
                if not token.startswith(("bytes:", "<|")):
                    assert choice.text[offset:].startswith(token)

    def test_the_likeliest_come_first_and_the_chosen_is_among_them(
        self, client: openai.OpenAI
    ) -> None:
        logprobs = (
            client.completions.create(
                model="news", prompt=PROMPT, max_tokens=10, temperature=1.5, seed=2, logprobs=4
            )
            .choices[0]
            .logprobs
        )
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        rows = zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
        for token, value, top in rows:
            assert top[token] == value
            others = [top[name] for name in top if name != token]
            assert others == sorted(others, reverse=True)

    def test_zero_gives_the_chosen_alone(self, client: openai.OpenAI) -> None:
        logprobs = (
            client.completions.create(model="news", prompt=PROMPT, max_tokens=3, logprobs=0)
            .choices[0]
            .logprobs
        )
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.top_logprobs is not None
        assert [list(top) for top in logprobs.top_logprobs] == [[t] for t in logprobs.tokens]
