"""What chat templates write: the instruction for sampling in its place, and templates that refuse messages."""

from __future__ import annotations

import pytest

from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.templates import prompt_text
from align.data.tokenize import encode_prompt, encode_row
from align.errors import UserError
from tests.data.handmade_tokenizers import (
    SAID,
    SKIPS_SYSTEM,
    TOKENIZERS,
    TURNS,
    chatml,
    gemma,
    llama3,
    mistral,
    plain,
    text_of,
)


def test_instruction_replaces_the_templates_own_system_prompt():
    expected = SAID["chatml"].replace("You are a helpful assistant.", "Be brief.")
    assert prompt_text(chatml(), "Hi", "Be brief.") == prompt_text(chatml(), (("user", "Hi"),), "Be brief.") == expected


def test_instruction_goes_before_a_system_message_that_is_there():
    prompt = (("system", "Be kind."), ("user", "Hi"))
    expected = SAID["chatml"].replace("You are a helpful assistant.", "Be brief.\n\nBe kind.")
    assert prompt_text(chatml(), prompt, "Be brief.") == expected
    assert prompt == (("system", "Be kind."), ("user", "Hi"))


def test_instruction_on_a_template_without_system_prompt():
    system = "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    expected = SAID["llama3"].replace("<|begin_of_text|>", "<|begin_of_text|>" + system)
    tokenizer = llama3()
    assert text_of(tokenizer, encode_prompt(tokenizer, "Hi", "Be brief.")) == expected


def test_instruction_without_template_is_a_paragraph_before_the_prompt():
    tokenizer = plain()
    assert text_of(tokenizer, encode_prompt(tokenizer, "Hi", "Be brief.")) == "<s>Be brief.\n\nHi"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("instruction", [None, ""])
def test_no_instruction_changes_nothing(name, instruction):
    tokenizer = TOKENIZERS[name]()
    assert text_of(tokenizer, encode_prompt(tokenizer, "Hi", instruction)) == SAID[name]


@pytest.mark.parametrize(
    "tokenizer, expected",
    [
        (mistral(), "<s>[INST] Be brief.\n\nHi [/INST]Hello.</s> [INST] Go away. [/INST]"),
        (
            gemma(),
            "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>assistant\nHello.<end_of_turn>\n"
            "<start_of_turn>user\nGo away.<end_of_turn>\n<start_of_turn>assistant\n",
        ),
    ],
    ids=["mistral", "gemma"],
)
def test_instruction_goes_before_the_first_user_message_if_there_is_no_system_role(tokenizer, expected):
    assert prompt_text(tokenizer, TURNS, "Be brief.") == expected


def test_instruction_that_a_template_would_skip_goes_before_the_first_user_message():
    text = prompt_text(gemma(SKIPS_SYSTEM), "Hi", "Be brief.")
    assert text == "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>assistant\n"


WITH_SYSTEM = (("system", "Be kind."), ("user", "Hi"))


def test_template_that_refuses_the_instruction_is_a_user_error():
    """Mistral's and Gemma's templates raise if they meet a system message; the recipe's author can mend that."""
    with pytest.raises(UserError) as error:
        encode_prompt(gemma(), WITH_SYSTEM, "Be brief.")
    assert str(error.value) == (
        "sampling.instruction: the model's chat template refuses it: System role not supported; "
        "leave it out, or write it into the prompts"
    )


def test_template_that_refuses_the_system_message_of_a_row_names_the_row():
    example = Example(WITH_SYSTEM, (Response("No.", "negative"),), "by hand", "my.jsonl:7")
    with pytest.raises(UserError) as error:
        encode_row(gemma(), example, roles={-1}, max_length=200, ledger=Ledger())
    assert str(error.value) == (
        "my.jsonl:7: the model's chat template refuses it: System role not supported; put the system message into "
        "the user's, use another model, or leave such rows out with data.on_bad_rows: skip"
    )
