"""The command line as a whole: every command explains itself, is completed, and the examples are right."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest

from align import cli, cli_help

COMMANDS = dict(cli_help.commands_of(cli._parser()))


def help_of(name: str, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        cli.run([*name.split(), "--help"])
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_it_takes(name, capsys):
    told = help_of(name, capsys)
    examples = told.partition("examples:\n")[2].splitlines()
    assert examples
    for line in examples:
        words = shlex.split(line.partition(">")[0])
        given, more = cli._parser().parse_known_args(words[1:])
        assert words[0] == "align" and words[1] == given.command
        assert all("=" in word for word in more), (line, more)  # overrides behind an option


def test_no_example_is_of_a_command_that_is_gone():
    assert cli_help.EXAMPLES.keys() == COMMANDS.keys()


def test_the_first_page_names_all_commands_in_order(capsys):
    with pytest.raises(SystemExit):
        cli.run(["--help"])
    told = capsys.readouterr().out
    assert all(f"    {name}" in told for name in COMMANDS if " " not in name)
    assert "align check recipes/d2o.yaml" in told and max(map(len, told.splitlines())) <= 120


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_commands_and_options(tmp_path):
    script = subprocess.run([sys.executable, "-m", "align.cli", "completion", "bash"], capture_output=True, text=True)
    (tmp_path / "align.sh").write_text(script.stdout)
    asked = f"source {tmp_path / 'align.sh'}; COMP_WORDS=(align {{}}); COMP_CWORD=$((${{{{#COMP_WORDS[@]}}}}-1)); "
    asked += "_shtab_align; printf '%s\\n' \"${{COMPREPLY[@]}}\""

    def completed(words: str) -> list[str]:
        done = subprocess.run(["bash", "-c", asked.format(words)], capture_output=True, text=True, cwd=tmp_path)
        return done.stdout.split()

    assert completed("doc") == ["doctor"]
    assert "--flips" in completed("doctor --f") and "--rows" not in completed("doctor --f")
    for option in (
        "doctor --eval",
        "evaluate run --lm-eval-path",
        "merge run --flips",
        "merge run --fisher",
        "plan --zero",
    ):
        assert completed(f"{option} al") == ["align.sh"], option
