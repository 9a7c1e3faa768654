"""What is evidence and what is instruction, by rule; each condition takes away what it says and nothing else."""

from __future__ import annotations

import pytest

from align.negatives import conditions
from align.negatives.conditions import degrade, full, noisy, topic

SUM = "Ann has 3 red apples. She eats one of them. How many apples does Ann have left?"
PASSAGE = "Is the cat red?\n\nThe cat sat on a mat. Is it red? It is."
CHAT = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "What is a red cat?"))


def poor(prompt, condition, given=""):
    return degrade(prompt, given, condition, noisy("seed", ["zebra"]))


def test_sentences_before_the_question_are_evidence():
    assert poor(SUM, "evidence") == ("How many apples does Ann have left?", False, "full")
    assert poor(SUM, "both") == ("Say something about apples Ann left.", False, "topic")
    vague = poor(SUM, "instruction")
    assert vague == ("Ann has 3 red apples. She eats one of them. Say something about apples Ann left.", True, "topic")


def test_self_play_changes_nothing():
    assert poor(SUM, "none") == (SUM, True, "full")
    assert poor("Why?", "none") == ("Why?", None, "full")


@pytest.mark.parametrize("condition", ["evidence", "noise"])
def test_a_prompt_of_one_piece_holds_no_evidence(condition):
    assert poor("Why do veins appear blue?", condition) is None


def test_what_limits_the_answer_is_dropped():
    prompt = "Write a poem about rain in exactly three lines. It must rhyme."
    assert poor(prompt, "instruction") == ("Write a poem about rain.", None, "vague")
    assert poor("Explain rain (for children) step by step.", "instruction").prompt == "Explain rain."
    assert poor("in one word", "instruction") == ("Say something about one word.", None, "topic")  # never nothing


def test_paragraphs_come_before_sentences():
    """The passage is one piece, whatever questions it asks itself; the last paragraph with one is the question."""
    assert poor(f"{PASSAGE}\n\nWhat did it sit on?", "evidence").prompt == "What did it sit on?"
    assert poor("Question: name it\nThe cat is called Tom?", "evidence").prompt == "Question: name it"
    assert poor("Summarise this.\n\nA cat sat.\n\nThen it left.", "evidence").prompt == "Summarise this."


def test_of_messages_all_before_the_last_turn_is_evidence():
    assert poor(CHAT, "evidence").prompt == (("user", "What is a red cat?"),)
    assert poor(CHAT, "instruction").prompt == (*CHAT[:3], ("user", "Say something about red cat."))
    tools = (("tools", "[]"), ("user", "Look."), ("assistant", "", '{"tool_calls": []}'), ("tool", "A cat."))
    assert poor(tools, "evidence").prompt == (*tools[:3], ("tool", ""))


def test_noise_replaces_about_half_of_the_evidence_alone():
    text = "red " * 400 + "cats. Is it so?"
    found = poor(text, "noise")
    assert found.prompt.endswith("Is it so?") and found.evidence is False
    assert 150 < found.prompt.count("zebra") < 250
    assert found == poor(text, "noise"), "the same name draws the same noise"
    assert degrade(text, "", "noise", noisy("other", ["zebra"])) != found


def test_evidence_beside_the_prompt_stands_in_front_of_it():
    assert full("Is it?", "Cats are.") == "Cats are.\n\nIs it?"
    assert full(CHAT, "Cats are.")[-1] == ("user", "Cats are.\n\nWhat is a red cat?")
    assert poor("Is it red?", "evidence", "Cats are.") == ("Is it red?", False, "full")
    assert poor("Is it red?", "instruction", "Cats are.").prompt == "Cats are.\n\nSay something about red."
    assert "zebra" in poor("Is it red?", "noise", "Cats are red and so are dogs.").prompt


def test_a_prompt_of_grammar_alone_cannot_be_made_vague():
    assert topic("What is it?") is None and poor("What is it?", "instruction") is None
    assert poor("", "both") is None
    assert poor("A cat sat. What is it?", "both") == ("What is it?", False, "full")


def test_words_are_those_of_all_messages_but_tools():
    assert conditions.words_of([(("tools", '[{"name": "x"}]'), ("user", "Don't go."))]) == ["Don't", "go"]
