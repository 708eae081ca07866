"""Rows of exactly the shapes that the public sets have; the texts are made up."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def message(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def comparison(choice: int = 1, post: str | None = "My cat left.", article: str | None = None) -> Row:
    """openai/summarize_from_feedback, comparisons. Rows on CNN and Daily Mail have an article and no post."""
    return {
        "info": {
            "id": "t3_1",
            "post": post,
            "title": "Cat" if post else None,
            "subreddit": "pets" if post else None,
            "site": None if post else "cnn",
            "article": article,
        },
        "summaries": [
            {"text": " Cat left.", "policy": "sup2", "note": None},
            {"text": " My cat left, sad.", "policy": "ref", "note": None},
        ],
        "choice": choice,
        "worker": "w",
        "batch": "batch3.json",
        "split": "train",
        "extra": {"confidence": None},
    }


TLDR = {
    "prompt": "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat left.\n\nTL;DR:",
    "chosen": " My cat left, sad.",
    "rejected": " Cat.",
}
"""trl-lib/tldr-preference."""

CARPER = {
    "prompt": "SUBREDDIT: r/pets\nTITLE: Cat\nPOST: My cat left.",
    "chosen": "TL;DR: Cat left me.",
    "rejected": "TL;DR: Cat.",
}
"""CarperAI/openai_summarize_comparisons."""


def hh(chosen: str, rejected: str, prompt: str = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A pun?") -> Row:
    """Anthropic/hh-rlhf: whole transcripts on both sides."""
    return {name: f"{prompt}\n\nAssistant:{answer}" for name, answer in (("chosen", chosen), ("rejected", rejected))}


def battle(winner: str = "model_b", turns: int = 1) -> Row:
    """lmsys/chatbot_arena_conversations."""
    question = [{"content": "Why?", "role": "user"}]
    more = [{"content": "And?", "role": "user"}, {"content": "So.", "role": "assistant"}] * (turns - 1)
    return {
        "question_id": "q1",
        "model_a": "a",
        "model_b": "b",
        "winner": winner,
        "judge": "arena_user_1",
        "conversation_a": [*question, {"content": "Because.", "role": "assistant"}, *more],
        "conversation_b": [*question, {"content": "No idea.", "role": "assistant"}, *more],
        "turn": turns,
        "anony": True,
        "language": "English",
        "tstamp": 1.0,
        "openai_moderation": {"flagged": False},
        "toxic_chat_tag": {},
    }


SKY, BLUE, GREEN = (
    message("user", "What colour is the sky?"),
    message("assistant", "Blue."),
    message("assistant", "Green."),
)
CONVERSATION = {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}
IMPLICIT_CONVERSATION = {"chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}
IMPLICIT = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
ULTRAFEEDBACK = {
    "prompt": SKY["content"],
    "prompt_id": "1",
    "chosen": [SKY, BLUE],
    "rejected": [SKY, GREEN],
    "messages": [SKY, BLUE],
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}
"""HuggingFaceH4/ultrafeedback_binarized: the prompt as text, and again within either side."""
COMPLETIONS = {
    "source": "x",
    "instruction": SKY["content"],
    "completions": [
        {"response": "Green.", "overall_score": 2.0},
        {"response": "Blue.", "overall_score": 9.0},
        {"response": "Grey.", "overall_score": 5.0},
    ],
}
"""openbmb/UltraFeedback."""
