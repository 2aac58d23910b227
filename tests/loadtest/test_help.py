"""What is asked for help says what it does, and does not do it."""

from importlib import import_module

import pytest

SCRIPTS = ["attention_paths", "lora_paths", "metrics_cost", "nf4_paths", "small_operations"]


@pytest.mark.parametrize("name", [*SCRIPTS, "step_profile"])
def test_help_is_the_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = import_module(f"loadtest.{name}")
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert " ".join((script.__doc__ or "").split()) in told
