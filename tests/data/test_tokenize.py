"""Prompt and response in tokens: the answer and its end-of-turn token, nothing else, on every kind of template."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from align.data.examples import Example, Prompt, Response, Step
from align.data.ledger import Ledger
from align.data.tokenize import PromptTooLong, encode_prompt, encode_response, encode_row, step_labels
from align.errors import UserError
from align.models import EMBEDDED, cache_folder
from tests import tiny
from tests.data.handmade_tokenizers import (
    CHATML,
    END_OF_TURN,
    SAID,
    SAID_IN_TURNS,
    TOKENIZERS,
    TURNS,
    build,
    chatml,
    gemma,
    llama3,
    plain,
    text_of,
)


def response_text(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, text: str) -> str:
    return text_of(tokenizer, encode_response(tokenizer, prompt, encode_prompt(tokenizer, prompt), text))


# Prompts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt(name):
    tokenizer = TOKENIZERS[name]()
    assert text_of(tokenizer, encode_prompt(tokenizer, "Hi")) == SAID[name]


@pytest.mark.parametrize("name", SAID_IN_TURNS)
def test_prompt_of_messages(name):
    tokenizer = TOKENIZERS[name]()
    assert text_of(tokenizer, encode_prompt(tokenizer, (("user", "Hi"),))) == SAID[name]
    assert text_of(tokenizer, encode_prompt(tokenizer, TURNS)) == SAID_IN_TURNS[name]


@pytest.mark.parametrize("name", ["llama3", "mistral", "plain"])
def test_prompt_and_response_have_one_bos(name):
    tokenizer = TOKENIZERS[name]()
    prompt_ids = encode_prompt(tokenizer, "Hi")
    ids = [*prompt_ids, *encode_response(tokenizer, "Hi", prompt_ids, "Hello.")]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_messages_need_a_chat_template():
    with pytest.raises(UserError) as error:
        encode_prompt(plain(), TURNS)
    assert str(error.value) == (
        "data: prompts are chat messages, but the model has no chat template; "
        "use an instruction-tuned model, or give prompts as plain text"
    )


# Responses

ANSWERS = [
    "Hello.",
    "Yes",
    "The capital of France is Paris.\n\nIs it? Yes,  it is.",
    "Grüße, 世界 🙂 — naïve",
    "- one\n- two\n\t- three",
    "x" * 50,
    "<s> is not special everywhere, [INST] neither",
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_response_is_the_text_and_the_end_of_turn(name, answer):
    assert response_text(TOKENIZERS[name](), "Hi", answer) == answer + END_OF_TURN[name]


@pytest.mark.parametrize("answer", [" Hello.", "Hello. ", "Hello.\n\n \n \n", "\u00a0Hello."])
@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_response_keeps_white_space_that_the_template_keeps(name, answer):
    assert response_text(TOKENIZERS[name](), "Hi", answer) == answer + END_OF_TURN[name]


@pytest.mark.parametrize("answer", ["Hello. ", "Hello.\n", "Yes \n \n \n \n", " \n \n \n Yes"])
def test_response_has_one_end_of_turn_if_the_template_trims(answer):
    """The trimmed text is shorter than the text of the row: its end must be found all the same."""
    assert response_text(llama3(), "Hi", answer) == answer.strip() + "<|eot_id|>"


@pytest.mark.parametrize("name", SAID_IN_TURNS)
def test_response_to_several_turns_is_the_last_answer_alone(name):
    assert response_text(TOKENIZERS[name](), TURNS, "No.") == "No." + END_OF_TURN[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_response_ends_in_one_end_of_turn_that_is_a_token(name):
    tokenizer = TOKENIZERS[name]()
    ids = encode_response(tokenizer, "Hi", encode_prompt(tokenizer, "Hi"), "Hello. Go away.")
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN[name])
    assert ids[-1] == end and ids.count(end) == 1


@pytest.mark.parametrize("answer", ["Write <|im_end|> behind the end of each and every turn.", "Say <|im_end|>."])
def test_response_that_quotes_the_end_of_turn_is_kept_whole(answer):
    assert response_text(chatml(), "Hi", answer) == answer + "<|im_end|>"


def test_end_of_turn_that_is_not_the_tokenizers_eos():
    """Llama 3 and Phi 3: the turn ends with a special token of its own, EOS ends the document."""
    assert response_text(llama3(eos_token="<|end_of_text|>"), "Hi", "Hello.") == "Hello.<|eot_id|>"
    assert response_text(gemma(), "Hi", "Hello. ") == "Hello.<end_of_turn>"


def test_line_break_of_a_template_without_end_of_turn_is_not_scored():
    template = NO_END.replace("message['content']", "message['content'] + '\n'")
    assert response_text(chatml(template), "Hi", "Hello.") == " Hello.<|im_end|>"


def test_another_template_has_another_end_of_turn():
    """What was found for the first must not be kept for the second."""
    tokenizer = chatml()
    assert response_text(tokenizer, "Hi", "Hello.") == "Hello.<|im_end|>"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    assert response_text(tokenizer, "Hi", "Hello.") == "Hello.<|endoftext|>"


NO_END = (
    "{% for message in messages %}{{ '\n' + message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)


def test_template_without_end_of_turn_gets_eos():
    assert response_text(chatml(NO_END), "Hi", "Hello.") == " Hello.<|im_end|>"


def test_eos_of_the_tokenizer_does_not_part_prompt_and_response():
    """Some tokenizers write EOS behind every text; behind a prompt it would end what is about to be answered."""
    tokenizer = plain(around="<s> $A </s>")
    assert text_of(tokenizer, encode_prompt(tokenizer, "Hi")) == "<s>Hi"
    assert response_text(tokenizer, "Hi", "Hello.") == "Hello.</s>"


# Templates whose rendered answer does not continue the rendered prompt

THINKING = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
SPACE_AT_THE_SEAM = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("template", [THINKING, SPACE_AT_THE_SEAM], ids=["other-prompt", "merged-token"])
def test_prompt_rendered_differently_before_an_answer_is_detected(template):
    tokenizer = chatml(template)
    with pytest.raises(ValueError) as error:
        encode_response(tokenizer, "Hi", encode_prompt(tokenizer, "Hi"), "Yes")
    assert str(error.value) == "the chat template renders the prompt differently before an answer"


@pytest.mark.parametrize("template", [THINKING, SPACE_AT_THE_SEAM], ids=["other-prompt", "merged-token"])
def test_prompt_rendered_differently_before_an_answer_is_counted(template):
    row, ledger = encode(chatml(template), Response("Yes", "positive"), Response("No", "negative"))
    assert row.responses == ()
    assert ledger.dropped == {"response dropped: prompt boundary unclear": 2}
    assert ledger.places == {"response dropped: prompt boundary unclear": ["my.jsonl:7"]}


def beginning(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that begins texts with BOS, as Llama's does."""
    special = ("<s>", "<|im_start|>", "<|im_end|>")
    return build(special, template=template, around="<s> $A", bos_token="<s>", eos_token="<|im_end|>")


@pytest.mark.parametrize(("template", "reasons"), [
    (tiny.CHATML, {"BOS missing: the tokenizer begins texts with it, the chat template does not"}),
    ("{{ bos_token }}" + tiny.CHATML, set()),
    ("{{ bos_token + bos_token }}" + tiny.CHATML, {
        "BOS written twice: by the template or the text, and by the tokenizer"
    }),
])  # fmt: skip
def test_bos_is_looked_at_in_every_row(template, reasons):
    row, ledger = encode(beginning(template), Response("Yes", "positive"), Response("No", "negative"))
    assert len(row.responses) == 2 and ledger.dropped == dict.fromkeys(reasons, 1)


def test_an_answer_without_a_prompt_has_a_token_in_front():
    """BOS where there is one, otherwise EOS, as GPT-2's texts are parted."""
    for tokenizer, first in ((beginning(None), "<s>"), (tiny.tokenizer(None), tiny.END)):
        ids = encode_prompt(tokenizer, "")
        assert tokenizer.convert_ids_to_tokens(ids) == [first]
        assert encode_response(tokenizer, "", ids, "No")[-1] == tokenizer.eos_token_id


# Rows


def encode(
    tokenizer: PreTrainedTokenizerFast,
    *responses: Response,
    roles: Sequence[int] = (1, 0, -1),
    max_length: int = 200,
):
    """(row, ledger) of the prompt "Hi" with some responses."""
    ledger, example = Ledger(), Example("Hi", responses, "by hand", "my.jsonl:7")
    return encode_row(tokenizer, example, roles=set(roles), max_length=max_length, ledger=ledger), ledger


def test_row_carries_roles_weights_and_rewards_in_order():
    given = [Response("Yes", "positive", 1.5, 2.0), Response("No", "negative", -1.0), Response("Hi", "sample")]
    row, ledger = encode(chatml(), *given)
    carried = [(response.role, response.weight, response.reward) for response in row.responses]
    assert carried == [(1, 2.0, 1.5), (-1, 1.0, -1.0), (0, 1.0, None)]
    assert row.example.responses == tuple(given) and ledger.dropped == {}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_row_is_prompt_and_responses(name):
    tokenizer = TOKENIZERS[name]()
    row, _ = encode(tokenizer, Response("Yes, it is.", "positive"), Response("No.", "negative"))
    texts = [text_of(tokenizer, row.prompt_ids + response.ids) for response in row.responses]
    assert texts == [SAID[name] + answer + END_OF_TURN[name] for answer in ("Yes, it is.", "No.")]
    assert row.lengths() == [len(row.prompt_ids) + len(response.ids) for response in row.responses]


def test_responses_of_roles_not_asked_for_are_counted():
    given = [Response("a", "positive"), Response("b", "negative"), Response("c", "sample"), Response("d", "positive")]
    row, ledger = encode(chatml(), *given, roles=[-1])
    assert [response.role for response in row.responses] == [-1]
    assert ledger.dropped == {"response unused: positive": 2, "response unused: sample": 1}
    assert ledger.places["response unused: sample"] == ["my.jsonl:7"]


LONG = "The capital of France is Paris. Is it? Yes, it is."


@pytest.mark.parametrize("name", TOKENIZERS)
def test_longer_response_is_cut_without_end_of_turn_and_counted(name):
    tokenizer = TOKENIZERS[name]()
    whole = encode(tokenizer, Response(LONG, "negative"))[0]
    row, ledger = encode(
        tokenizer,
        Response(LONG, "negative"),
        Response("No.", "negative"),
        max_length=whole.lengths()[0] - 1,
    )
    assert row.responses[0].ids == whole.responses[0].ids[:-1]
    assert text_of(tokenizer, row.responses[0].ids) == LONG
    assert text_of(tokenizer, row.responses[1].ids) == "No." + END_OF_TURN[name]
    assert (ledger.dropped, ledger.places) == ({"response truncated": 1}, {"response truncated": ["my.jsonl:7"]})


def test_response_that_just_fits_is_not_cut():
    tokenizer = chatml()
    whole = encode(tokenizer, Response(LONG, "negative"))[0]
    row, ledger = encode(tokenizer, Response(LONG, "negative"), max_length=whole.lengths()[0])
    assert (row, ledger.dropped) == (whole, {})


def test_room_for_one_token_is_room():
    tokenizer = chatml()
    length = len(encode_prompt(tokenizer, "Hi")) + 1
    row, ledger = encode(tokenizer, Response(LONG, "negative"), max_length=length)
    assert row.lengths() == [length] and ledger.dropped == {"response truncated": 1}


@pytest.mark.parametrize("short_by", [0, 5])
def test_prompt_too_long(short_by):
    tokenizer = chatml()
    length = len(encode_prompt(tokenizer, "Hi"))
    with pytest.raises(PromptTooLong) as error:
        encode(tokenizer, Response("No.", "negative"), max_length=length - short_by)
    assert str(error.value) == f"{length} tokens of prompt, data.max_length is {length - short_by}"


# Judged steps


def judged(text: str, *steps: tuple[str, int | None], role: str = "negative") -> Response:
    """A response whose first characters are these steps, one behind the other."""
    ends = [sum(len(piece) for piece, _ in steps[: index + 1]) for index in range(len(steps))]
    assert text.startswith("".join(piece for piece, _ in steps))
    return Response(text, role, steps=tuple(Step(end, label) for end, (_, label) in zip(ends, steps, strict=True)))


def labelled(tokenizer, response: Response, prompt: Prompt = "Hi") -> list[tuple[str, int]]:
    """(token's text, label) of every token of the response, end-of-turn token included."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    ids = encode_response(tokenizer, prompt, prompt_ids, response.text)
    labels = step_labels(tokenizer, prompt, prompt_ids, response, len(ids))
    assert len(labels) == len(ids)
    return [(text_of(tokenizer, [token]), label) for token, label in zip(ids, labels, strict=True)]


TINY = {"ChatML": tiny.CHATML, "plain text": None}


@pytest.mark.parametrize("template", TINY.values(), ids=TINY)
def test_step_labels_of_bytes_by_hand(template):
    """Spaces of their own are tokens of the step they are in; the end of the turn is nobody's."""
    response = judged("ab c.d", ("ab", 1), (" c.", -1))
    expected = [("a", 1), ("b", 1), (" ", -1), ("c", -1), (".", -1), ("d", 0), ("<|im_end|>", 0)]
    assert labelled(tiny.tokenizer(template), response) == expected


@pytest.mark.parametrize("template", TINY.values(), ids=TINY)
def test_unjudged_steps_are_0(template):
    response = judged("abcd", ("a", 1), ("bc", None), ("d", -1))
    assert [label for _, label in labelled(tiny.tokenizer(template), response)] == [1, 0, 0, -1, 0]


def test_no_judged_step_is_no_labels():
    tokenizer = tiny.tokenizer()
    for response in (Response("ab", "negative"), judged("ab", ("a", None), ("b", None))):
        assert step_labels(tokenizer, "Hi", encode_prompt(tokenizer, "Hi"), response, 3) is None


@pytest.mark.parametrize("template", TINY.values(), ids=TINY)
def test_all_tokens_of_one_character_belong_to_its_step(template):
    """UTF-8: é is two bytes, 中 three, 😀 four; offsets of steps count characters."""
    response = judged("é中a😀b", ("é", 1), ("中", -1), ("a", None), ("😀", 1), ("b", -1))
    labels = [label for _, label in labelled(tiny.tokenizer(template), response)]
    assert labels == [1] * 2 + [-1] * 3 + [0] + [1] * 4 + [-1] + [0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_token_that_begins_with_a_space_belongs_to_the_step_of_its_word(name):
    """The space is the last character of the first step, the word behind it the second step."""
    tokenizer = TOKENIZERS[name]()
    found = labelled(tokenizer, judged("Yes, it is.", ("Yes, it ", 1), ("is.", -1)))
    assert (" is", -1) in found and (" it", 1) in found
    assert "".join(text for text, label in found if label == 1) == "Yes, it"
    assert found[-1] == (END_OF_TURN[name], 0)


def test_a_token_across_a_border_belongs_to_the_step_of_its_first_character():
    found = labelled(chatml(), judged("Yes, it is.", ("Yes, i", 1), ("t is.", -1)))
    assert (" it", 1) in found and (" is", -1) in found


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("around", ["{}", "  {}", "{} \n ", "\n\n{}\n"], ids=repr)
def test_labels_with_and_without_spaces_that_a_template_trims(name, around):
    """Llama 3's template trims; the others write the answer as it is."""
    text = around.format("Yes, it is.")
    lead, tail = around.split("{}")
    found = labelled(TOKENIZERS[name](), judged(text, (lead + "Yes,", 1), (" it", -1), (" is." + tail, 1)))
    words = [(piece.strip(), label) for piece, label in found[:-1] if piece.strip()]
    assert [label for _, label in words] == [1] * (len(words) - 3) + [-1, 1, 1]
    assert [word for word, _ in words[-3:]] == ["it", "is", "."]
    assert found[-1] == (END_OF_TURN[name], 0), "the end of the turn is no part of a step whose spaces were trimmed"


@pytest.mark.parametrize("answer", ["Hi", "end", "im", "assistant", "e", "|"])
def test_an_answer_that_occurs_elsewhere_in_the_rendered_text_is_found_at_its_place(answer):
    """In the prompt, in the header of the turn, or in the end-of-turn token behind it."""
    found = labelled(tiny.tokenizer(), judged(answer, (answer[:1], -1), *([(answer[1:], 1)] if answer[1:] else [])))
    assert found == [(answer[:1], -1), *[(letter, 1) for letter in answer[1:]], ("<|im_end|>", 0)]


@pytest.mark.parametrize("template", TINY.values(), ids=TINY)
@pytest.mark.parametrize("prefix", [True, False], ids=["Llama 2", "Gemma"])
def test_labels_of_a_tokenizer_that_falls_back_to_bytes(prefix, template):
    """As SentencePiece: spaces are `▁`, one may stand before the text, unknown characters are several byte tokens."""
    words = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeHiYsuratn\n"]
    inner = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    inner.add_special_tokens([tiny.START, tiny.END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=tiny.END, chat_template=template)
    response = judged("Yes é中 a😀b", ("Yes", 1), (" é", -1), ("中", 1), (" a", None), ("😀", -1), ("b", 1))
    labels = [label for _, label in labelled(tokenizer, response)]
    in_front = [1] if prefix and template is None else []
    assert labels == [*in_front, 1, 1, 1, -1, -1, -1, 1, 1, 1, 0, 0, -1, -1, -1, -1, 1, 0]


def test_labels_of_the_embedded_tokenizer():
    """A real vocabulary. Every token's label is that of the step in which its first visible character lies."""
    folder = cache_folder() / EMBEDDED
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("not fetched yet")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    steps = [
        ("First, 12 plus 30 is 42.\n", 1),
        ("Naïvely ≈ 43 🙂,", -1),
        (" then\n\n", None),
        ("so 42", 1),
        (" it is", -1),
    ]
    text = "".join(piece for piece, _ in steps) + " indeed"
    prompt_ids = encode_prompt(tokenizer, "First, 12 plus 30?")
    ids = encode_response(tokenizer, "First, 12 plus 30?", prompt_ids, text)
    labels = step_labels(tokenizer, "First, 12 plus 30?", prompt_ids, judged(text, *steps), len(ids))
    spoken = {1: b"", -1: b"", 0: b""}
    decode = {letter: byte for byte, letter in bytes_to_unicode().items()}
    for token, label in zip(tokenizer.convert_ids_to_tokens(ids[:-1]), labels, strict=False):
        spoken[label] += bytes(decode[letter] for letter in token)
    expected = {label: "".join(piece for piece, own in steps if own == label) for label in (1, -1)}
    expected[0] = " then\n\n" + " indeed"
    without_spaces = {label: "".join(said.decode().split()) for label, said in spoken.items()}
    assert without_spaces == {label: "".join(piece.split()) for label, piece in expected.items()}
    assert len(labels) == len(ids) and labels[-1] == 0 and ids[-1] == tokenizer.eos_token_id
    assert max(map(len, tokenizer.convert_ids_to_tokens(ids[:-1]))) > 4, "words are single tokens"


def test_steps_after_several_turns_are_those_of_the_last_answer():
    found = labelled(tiny.tokenizer(), judged("Hello.", ("Hel", 1), ("lo.", -1)), TURNS)
    assert [label for _, label in found] == [1, 1, 1, -1, -1, -1, 0]


def test_what_a_template_writes_before_the_answer_is_unjudged():
    """Between the prompt and the answer this one puts a space, which is part of the response."""
    found = labelled(tiny.tokenizer(NO_END), judged("Yes", ("Ye", 1), ("s", -1)))
    assert found == [(" ", 0), ("Y", 1), ("e", 1), ("s", -1), ("<|im_end|>", 0)]


def test_a_cut_response_keeps_the_labels_of_what_is_left():
    tokenizer = tiny.tokenizer()
    length = len(encode_prompt(tokenizer, "Hi")) + 4
    row, ledger = encode(tokenizer, judged("abcdef", ("abc", 1), ("def", -1)), max_length=length)
    assert row.responses[0].step_labels == (1, 1, 1, -1) and len(row.responses[0].ids) == 4
    assert ledger.dropped == {"response truncated": 1}


def test_a_row_carries_labels_of_the_judged_responses():
    row, ledger = encode(tiny.tokenizer(), judged("ab", ("a", 1)), Response("c", "negative"), judged("d", ("d", None)))
    assert [response.step_labels for response in row.responses] == [(1, 0, 0), None, None]
    assert ledger.dropped == {}


CHANGES = {
    "upper case": ("message['content']", "message['content'] | upper"),
    "nothing of it": ("message['content']", "'...'"),
}


@pytest.mark.parametrize("prompt", ["Hi", "Is it no way?"], ids=["elsewhere", "also in the prompt"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_template_that_changes_the_answer_is_counted_and_the_response_kept(change, prompt):
    """The prompt may hold the answer as it was given: it must not be taken for it."""
    old, new = change
    template = tiny.CHATML.replace(old, f"({new} if message['role'] == 'assistant' else {old})")
    # the probe that tells the end of the turn must come through, as through real templates that drop thoughts only
    template = template.replace("if message['role']", "if message['content'] != 'Answer7391' and message['role']")
    ledger, example = Ledger(), Example(prompt, (judged("no way", ("no", 1)),), "by hand", "my.jsonl:7")
    row = encode_row(tiny.tokenizer(template), example, roles={-1}, max_length=200, ledger=ledger)
    assert [response.step_labels for response in row.responses] == [None] and row.responses[0].ids
    assert ledger.dropped == {"steps unused: the chat template changes the answer": 1}
    assert ledger.places["steps unused: the chat template changes the answer"] == ["my.jsonl:7"]


def test_a_tokenizer_without_offsets_is_a_user_error():
    tokenizer = tiny.tokenizer()
    prompt_ids = encode_prompt(tokenizer, "Hi")

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not tell where its tokens begin; use a model with a fast tokenizer"):
        step_labels(Slow(), "Hi", prompt_ids, judged("ab", ("a", 1)), 3)
    assert step_labels(Slow(), "Hi", prompt_ids, Response("ab", "negative"), 3) is None


# Log-probs of who wrote it


def logged(text: str, *logps: float) -> Response:
    return Response(text, "negative", behavior_logps=logps)


@pytest.mark.parametrize("template", TINY.values(), ids=TINY)
def test_behavior_logps_are_one_for_each_token_with_the_end_of_turn(template):
    row, ledger = encode(tiny.tokenizer(template), logged("ab", -1, -2, -3), Response("c", "negative"))
    assert [response.behavior_logps for response in row.responses] == [(-1, -2, -3), None]
    assert ledger.dropped == {}


@pytest.mark.parametrize("logps", [(-1.0, -2.0), (-1.0, -2.0, -3.0, -4.0)], ids=["without the end", "one too many"])
def test_behavior_logps_of_another_length_are_counted_and_the_response_kept(logps):
    row, ledger = encode(tiny.tokenizer(), logged("ab", *logps))
    assert row.responses[0].behavior_logps is None and len(row.responses[0].ids) == 3
    reason = "behavior_logps unused: not one for each token"
    assert (ledger.dropped, ledger.places) == ({reason: 1}, {reason: ["my.jsonl:7"]})


def test_behavior_logps_of_a_cut_response_are_cut():
    """They are compared with the tokens of the whole response, not with those that are left."""
    tokenizer = tiny.tokenizer()
    length = len(encode_prompt(tokenizer, "Hi")) + 2
    given = [logged("abc", -1, -2, -3, -4), logged("abc", -1, -2)]
    row, ledger = encode(tokenizer, *given, max_length=length)
    assert [response.behavior_logps for response in row.responses] == [(-1, -2), None]
    assert ledger.dropped == {"response truncated": 2, "behavior_logps unused: not one for each token": 1}
