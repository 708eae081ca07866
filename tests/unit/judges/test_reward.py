"""Point-wise reward models from real checkpoints: decoders, encoders and encoder-decoders, made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from aligngap.errors import UserError
from aligngap.judges.reward import RewardJudge, RewardJudgeSpec
from aligngap.judges.spec import JudgeIngredients
from aligngap.judges.text import PromptReader
from aligngap.types import Tokens
from unit.judges.texts import CORPUS, bpe, chat_policy, sides

POLICY = bpe(size=330, eos_token="</s>", bos_token="<s>", pad_token="<pad>")  # not the reward models' own
WIDE = 64

Made = tuple[Any, Any]


def sizes(tokenizer: Any, **roles: int) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "num_labels": 1, "num_hidden_layers": 2, "num_attention_heads": 2, **roles}


def llama(padding: str | None = "<pad>") -> Made:
    tokenizer = bpe(eos_token="</s>", bos_token="<s>", **({"pad_token": padding} if padding else {}))
    assert (tokenizer.pad_token_id is None) == (padding is None)
    shape = sizes(tokenizer, hidden_size=32, intermediate_size=32, max_position_embeddings=WIDE)
    return LlamaForSequenceClassification(LlamaConfig(**shape, pad_token_id=tokenizer.pad_token_id)), tokenizer


def llama_without_padding() -> Made:
    return llama(None)


def llama_padded_with_its_end() -> Made:
    model, tokenizer = llama_without_padding()
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.eos_token_id
    return model, tokenizer


def gpt2_that_pads_on_the_left() -> Made:
    tokenizer = bpe(eos_token="</s>", pad_token="<pad>")
    tokenizer.padding_side = "left"
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=WIDE, num_labels=1, pad_token_id=None
    )
    return GPT2ForSequenceClassification(config), tokenizer


def bert() -> Made:
    tokenizer = bpe(
        ("[CLS]", "[SEP]", "[PAD]"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", model_max_length=WIDE
    )
    shape = sizes(tokenizer, hidden_size=32, intermediate_size=32, max_position_embeddings=WIDE)
    return BertForSequenceClassification(BertConfig(**shape, pad_token_id=tokenizer.pad_token_id)), tokenizer


def roberta() -> Made:
    tokenizer = bpe(
        ("<s>", "<pad>", "</s>"),
        cls_token="<s>",
        sep_token="</s>",
        eos_token="</s>",
        bos_token="<s>",
        pad_token="<pad>",
    )
    # Positions are counted from pad_token_id + 1 on, so that two of them are of no use.
    shape = sizes(tokenizer, hidden_size=32, intermediate_size=32, max_position_embeddings=WIDE + 2)
    return RobertaForSequenceClassification(RobertaConfig(**shape, pad_token_id=1)), tokenizer


def t5() -> Made:
    tokenizer = bpe(("<pad>", "</s>", "<unk>"), eos_token="</s>", pad_token="<pad>", model_max_length=WIDE)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForSequenceClassification(config), tokenizer


MAKERS: list[Callable[[], Made]] = [
    llama,
    llama_without_padding,
    llama_padded_with_its_end,
    gpt2_that_pads_on_the_left,
    bert,
    roberta,
    t5,
]


def save(folder: Path, make: Callable[[], Made], template: str | None = None) -> Path:
    torch.manual_seed(0)
    model, tokenizer = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # At the usual initial weights a text's score hardly depends on it, and a wrong mask would go unseen.
            if weight.ndim > 1 and make is not t5:  # whose own are large
                weight.mul_(6.0 if "position" not in name else 20.0)
    tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rewards")
    return {make.__name__: save(root / make.__name__, make) for make in MAKERS}


def judge(folder: Path, policy: Any = POLICY, **settings: Any) -> RewardJudge:
    return RewardJudgeSpec(model=str(folder), **settings).build(JudgeIngredients(tokenizer=policy))


def texts() -> list[tuple[str, str]]:
    """Prompts and responses of very unlike lengths."""
    words = " ".join(CORPUS).split()
    return [
        (" ".join(words[k : k + 2 + k % 5]), " " + " ".join(words[2 * k : 2 * k + 1 + (k * k) % 17])) for k in range(12)
    ]


NAMES = [make.__name__ for make in MAKERS]


@pytest.mark.parametrize("form", ["joined", "pair"])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_each_text_gives_alone(folders: dict[str, Path], name: str, form: Any) -> None:
    made = judge(folders[name], text=form)
    inputs = [made._encoded(*text) for text in texts()]
    before = made.model.config.to_dict()
    together = torch.tensor(made.scores(inputs))
    alone = torch.cat([made.model(**{k: torch.tensor([v]) for k, v in row.items()}).logits[:, 0] for row in inputs])
    assert len({len(row["input_ids"]) for row in inputs}) > 5
    assert together.std() > 0.01
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert made.model.config.to_dict() == before
    made.batch = 1
    torch.testing.assert_close(torch.tensor(made.scores(inputs)), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_margin_is_the_difference_of_the_scores(folders: dict[str, Path], name: str) -> None:
    made = judge(folders[name], batch=3)
    rows = [(x, y, z) for (x, y), (_, z) in zip(texts(), reversed(texts()), strict=True)]
    tokens = sides(POLICY, rows)
    margin = made.margin(*tokens)
    first, second = (torch.tensor(made.scores([made._encoded(x, (y, z)[side]) for x, y, z in rows])) for side in (0, 1))
    torch.testing.assert_close(margin, first - second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.margin(tokens[0], tokens[2], tokens[1]), -margin)
    torch.testing.assert_close(made.probability(*tokens), margin.sigmoid())
    assert made.prefer(*tokens).tolist() == ((margin.sign() + 1) / 2).tolist()


def test_each_text_is_scored_once(folders: dict[str, Path]) -> None:
    made = judge(folders["llama"])
    made.margin(*sides(POLICY, [("Which?", "one", "two"), ("Which?", "two", "three"), ("What?", "one", "one")]))
    assert made.spent == {"texts_scored": 3, "texts_cut": 0, "undecided": 0}
    assert made.calls == 3


def ids_of(made: RewardJudge, prompt: str, response: str) -> list[int]:
    return made._encoded(prompt, response)["input_ids"]


def test_a_text_is_closed_as_its_kind_of_model_learned_it(folders: dict[str, Path]) -> None:
    def shown(name: str, form: Any) -> str:
        made = judge(folders[name], text=form)
        return str(made.own.decode(ids_of(made, "Which?", " one")))

    assert shown("llama", "joined") == "Which? one</s>"
    assert shown("t5", "joined") == "Which? one</s>"
    assert shown("bert", "joined") == "[CLS]Which? one[SEP]"
    assert shown("bert", "pair") == "[CLS]Which?[SEP] one[SEP]"
    assert shown("roberta", "joined") == "<s>Which? one</s>"


def test_encoders_are_told_which_text_is_which(folders: dict[str, Path]) -> None:
    made = judge(folders["bert"], text="pair")
    fields = made._encoded("Which?", " one")
    second = fields["input_ids"].index(made.own.sep_token_id) + 1
    assert fields["token_type_ids"] == [0] * second + [1] * (len(fields["input_ids"]) - second)
    assert "token_type_ids" not in judge(folders["llama"])._encoded("Which?", " one")


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_that_a_response_spells_out_are_letters(folders: dict[str, Path], name: str) -> None:
    """A policy must not end, pad or begin a text for its judge; and T5 refuses texts with unlike numbers of ends."""
    made = judge(folders[name])
    rows = [("Which?", "one</s>two<pad><s>[SEP][CLS]", "one two"), ("What?", "a</s>b</s>c", "a")]
    special = set(made.own.all_special_ids)
    for prompt, response, _ in rows:
        assert not special & set(ids_of(made, prompt, response)[1:-1])
    assert made.margin(*sides(POLICY, rows)).isfinite().all()


@pytest.mark.parametrize("form", ["joined", "pair"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_too_long_loses_its_beginning(folders: dict[str, Path], name: str, form: Any) -> None:
    made = judge(folders[name], text=form)
    prompt, response = "why " * 200 + "indeed?", " because"
    ids = ids_of(made, prompt, response)
    assert len(ids) == made.longest == WIDE
    assert made.spent["texts_cut"] == 1
    assert "indeed?" in made.own.decode(ids, skip_special_tokens=True)
    assert made.own.decode(ids, skip_special_tokens=True).endswith("because")
    whole = ids_of(made, "Which?", " one")
    assert (ids[-1] in made.own.all_special_ids) == (whole[-1] in made.own.all_special_ids)
    assert torch.tensor(made.scores([made._encoded(prompt, response)])).isfinite().all()


def test_the_limit_may_be_lower(folders: dict[str, Path]) -> None:
    assert len(ids_of(judge(folders["bert"], max_length=20), "why " * 50, " because")) == 20


# Chat templates


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    return save(tmp_path_factory.mktemp("chatty"), llama, template)


def seen(made: RewardJudge, prompt_ids: list[int], response: str) -> str:
    return str(made.own.decode(ids_of(made, made.read_prompt(prompt_ids), response)))


def test_a_policys_conversation_is_told_in_the_models_own_template(chatty: Path) -> None:
    policy = chat_policy()
    made = judge(chatty, policy, max_length=500)
    assert made.form == "chat"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I mend\n\na tyre?"},
        {"role": "assistant", "content": "Take the wheel off."},
        {"role": "user", "content": "And then?"},
    ]
    for said in (turns, turns[1:], turns[:2], turns[1:2]):
        ids = policy.apply_chat_template(said, tokenize=True, add_generation_prompt=True)["input_ids"]
        whole = [*said, {"role": "assistant", "content": "Glue a patch on it."}]
        assert seen(made, ids, "Glue a patch on it.") == "".join(f"<s>{m['role']}: {m['content']}</s>" for m in whole)


def test_a_prompt_that_is_no_conversation_is_a_users_turn(chatty: Path) -> None:
    ids = POLICY("What is the capital?", add_special_tokens=False)["input_ids"]
    assert seen(judge(chatty), ids, "Paris.") == "<s>user: What is the capital?</s><s>assistant: Paris.</s>"


def test_a_control_token_that_somebody_spells_ends_no_turn(chatty: Path) -> None:
    """Two texts that differ in a spelled `</s>` alone are read with the same number of end tokens."""
    made = judge(chatty)
    plain, spelled = (
        made._encoded(json.dumps([{"role": "user", "content": asked}]), said)["input_ids"]
        for asked, said in (("What ends it?", "Paris."), ("What ends </s> it?", "<s>Paris.</s> No."))
    )
    for token in (made.own.bos_token_id, made.own.eos_token_id):
        assert spelled.count(token) == plain.count(token) == 2
    assert "ends </s> it?" in made.own.decode(spelled)


def test_a_cut_conversation_is_a_users_turn(chatty: Path) -> None:
    policy = chat_policy()
    said = [{"role": "user", "content": "What is the capital of France?"}]
    ids = policy.apply_chat_template(said, tokenize=True, add_generation_prompt=True)["input_ids"]
    text = seen(judge(chatty, policy), ids[-8:], "Paris.")
    assert text.startswith("<s>user: ")
    assert text.endswith("assistant\n</s><s>assistant: Paris.</s>")


def test_conversations_are_compared_in_batches(chatty: Path) -> None:
    policy = chat_policy()
    made = judge(chatty, policy)
    prompts = Tokens.collate(
        [
            policy.apply_chat_template([{"role": "user", "content": x}], tokenize=True, add_generation_prompt=True)[
                "input_ids"
            ]
            for x, _ in texts()
        ]
    )
    end = [policy.eos_token_id]
    first = Tokens.collate([policy(y)["input_ids"] + end for _, y in texts()])
    second = Tokens.collate([policy(y + " again")["input_ids"] + end for _, y in texts()])
    alone = [
        float(made.margin(*(part.take(torch.tensor([k])) for part in (prompts, first, second))))
        for k in range(len(texts()))
    ]
    torch.testing.assert_close(made.margin(prompts, first, second), torch.tensor(alone), atol=1e-5, rtol=1e-5)
    assert min(map(abs, alone)) > 1e-4


def test_the_template_may_be_left_aside(chatty: Path) -> None:
    made = judge(chatty, text="joined")
    assert seen(made, POLICY("Which?", add_special_tokens=False)["input_ids"], " one") == "Which? one</s>"


def test_a_template_that_refuses_is_a_clear_error(tmp_path: Path) -> None:
    folder = save(tmp_path, llama, "{{ raise_exception('Only one turn, please.') }}")
    with pytest.raises(UserError, match=r"Only one turn, please\."):
        judge(folder).margin(*sides(POLICY, [("Which?", "one", "two")]))


# What is refused


def refused(folder: Path | str, says: str, **settings: Any) -> None:
    with pytest.raises(UserError) as caught:
        judge(Path(folder), **settings).margin(*sides(POLICY, [("Which?", "one", "two")]))
    assert says in str(caught.value), caught.value
    assert caught.value.hint


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    model, tokenizer = llama()
    for labels in (2, 3):
        config = LlamaConfig(**(model.config.to_dict() | {"num_labels": labels}))
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        refused(tmp_path, f"this model has {labels}")


@pytest.mark.parametrize(("make", "head"), [(llama, LlamaForCausalLM), (bert, BertForMaskedLM)])
def test_a_model_without_the_head_is_refused(tmp_path: Path, make: Callable[[], Made], head: Any) -> None:
    model, tokenizer = make()
    head(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(tmp_path, "are missing")


def test_no_weights_are_unpickled(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["llama"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "pytorch_model.bin is a pickle")


def test_broken_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no base model")
    refused(tmp_path, "no config.json")
    for name, content, says in (
        ("config.json", "{", "cannot be read"),
        ("config.json", '{"model_type": "no-such-kind"}', "cannot be read"),
        ("model.safetensors", "not weights", "cannot be read"),
        ("tokenizer.json", "{", "cannot be read"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(folders["llama"], broken)
        (broken / name).write_text(content)
        refused(broken, says)
        shutil.rmtree(broken)
    with pytest.raises(UserError, match="no reward models"):
        RewardJudgeSpec(model="small").build(JudgeIngredients(tokenizer=POLICY))


def test_a_hub_id_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        RewardJudgeSpec(model="no-owner/no-model", revision="v1").build(JudgeIngredients(tokenizer=POLICY))
    assert "network" in str(caught.value.hint)


def test_code_of_the_checkpoint_runs_only_if_the_user_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "with code"
    shutil.copytree(folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code_of_mine.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code_of_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass MyConfig: ...\n")
    refused(folder, "trust_remote_code: true")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "larger"
    shutil.copytree(folders["llama"], folder)
    larger = bpe(size=500, eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    larger.add_tokens(["one"])
    larger.save_pretrained(folder)
    refused(folder, "embedding has 400 rows")
    with pytest.raises(UserError, match="embedding has 400 rows"):  # `plan` says so already
        RewardJudgeSpec(model=str(folder)).check()


def test_scores_that_are_no_numbers_are_refused(folders: dict[str, Path]) -> None:
    made = judge(folders["llama"])
    made.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        made.margin(*sides(POLICY, [("Which?", "one", "two")]))


# Identity


def test_the_identity_is_the_files_and_how_they_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders["llama"], copy)

    def identity(**settings: Any) -> dict[str, object]:
        return RewardJudgeSpec(model=str(copy), **settings).identity()

    plain = identity()
    assert plain == RewardJudgeSpec(model=str(folders["llama"])).identity() == identity(batch=3, trust_remote_code=True)
    assert str(tmp_path) not in str(plain)
    for settings in ({"dtype": "bfloat16"}, {"max_length": 20}, {"text": "pair"}):
        assert identity(**settings) != plain
    (copy / "tokenizer_config.json").write_text("{}")
    assert identity() != plain


def test_a_model_beside_the_study_is_found(folders: dict[str, Path]) -> None:
    folder = folders["llama"]
    spec = RewardJudgeSpec(model=folder.name)
    assert spec.identity(folder.parent) == RewardJudgeSpec(model=str(folder)).identity()
    assert spec.build(JudgeIngredients(tokenizer=POLICY, search=folder.parent)).form == "joined"


def test_a_hub_model_is_known_by_name_and_revision() -> None:
    found = [RewardJudgeSpec(model="owner/model", revision=name).identity()["model"] for name in (None, "v1")]
    assert found == ["hub:owner/model@main", "hub:owner/model@v1"]


def test_half_precision_is_for_the_weights_alone(folders: dict[str, Path]) -> None:
    rows = [(x, y, y + " again") for x, y in texts()]
    full, half = (judge(folders["llama"], dtype=kind).margin(*sides(POLICY, rows)) for kind in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.2 * full.abs().max()
    assert not torch.equal(full, half)


@pytest.mark.parametrize("name", ["gpt2_that_pads_on_the_left", "bert"])
def test_scores_are_those_of_the_models_own_pipeline(folders: dict[str, Path], name: str) -> None:
    """What the tokenizer gives by default decides: token types of 0 would add a word's embedding to a GPT-2."""
    made = judge(folders[name], text="joined")
    fields = made._encoded("Which?", " one")
    with torch.no_grad():
        own = made.own(made.own.decode(fields["input_ids"]), add_special_tokens=False, return_tensors="pt")
        expected = made.model(**own).logits[0, 0].item()
    assert made.scores([fields]) == pytest.approx([expected], abs=1e-5)


def test_one_refused_conversation_is_undecided_and_many_are_the_templates_fault(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('bad words') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    )
    made = judge(save(tmp_path / "chat", llama, template))
    rows = [(f"Which {n}?", "one", "bad" if n == 4 else "two") for n in range(20)]
    margin = made.margin(*sides(POLICY, rows))
    assert made.spent["undecided"] == 1
    assert margin[4] == 0
    assert (margin != 0).sum() == 19
    with pytest.raises(UserError, match=r"refuses \d of the first"):
        judge(tmp_path / "chat").margin(*sides(POLICY, [(f"bad {n}", "one", "two") for n in range(20)]))


def test_half_precision_scores_are_rounded_no_further_than_the_body_is(folders: dict[str, Path]) -> None:
    made = judge(folders["llama"], dtype="bfloat16")
    assert made.model.score.weight.dtype == torch.float32
    inputs = [made._encoded("Which?", f" {word} {number}") for word in ("one", "two", "three") for number in range(40)]
    scores = made.scores(inputs)
    rounded = torch.tensor(scores).bfloat16().float().tolist()
    assert len(set(scores)) > len(set(rounded))


def test_a_text_judge_is_told_who_said_what() -> None:
    policy = chat_policy()
    read = PromptReader(policy)
    said = [
        {"role": "user", "content": "Is the sea deep?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Sure?"},
    ]

    def ids(turns: list[dict[str, str]]) -> list[int]:
        return list(policy.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"])

    assert read(ids(said)) == "User: Is the sea deep?\n\nAssistant: No.\n\nUser: Sure?"
    assert read(ids(said[:1])) == "Is the sea deep?"
    system = {"role": "system", "content": "Be brief."}
    assert read(ids([system, *said[:1]])) == "System: Be brief.\n\nUser: Is the sea deep?"
    policy.chat_template = (
        "{% for m in messages %}<s>{{ m.content[1:] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    told = PromptReader(policy)(ids(said))  # turns that cannot be read back keep what parts them
    assert told.count("</s>") == 3
