"""Published folders: names by rule, structure from shapes, and a report that is exact.

toy weights under other names, or damaged in one way -> plan_import -> Report; load_model -> equal outputs
"""

import dataclasses
import json
import logging
import os
import re

import pytest
import torch
from bamba import make_bamba
from hypothesis import given, settings
from hypothesis import strategies as st
from published import publish, publish_headers, publish_model, published_config
from toys import SMALL, random_model

from hybridna_core.checkpoint import load_model, save_model
from hybridna_core.config import PRESETS, layer_pattern
from hybridna_core.errors import HybriDNAError, ModelError, UsageError
from hybridna_core.hf_names import Place, place
from hybridna_core.hf_structure import group_counts, head_layouts
from hybridna_core.hf_weights import load_published, plan_import

CONFIG = dataclasses.replace(SMALL, mamba_n_heads=4, mamba_d_head=16, bos_token_id=None)
TOKENS = torch.randint(7, 11, (2, 50), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return random_model(mamba_n_heads=4, mamba_d_head=16, bos_token_id=None)


@pytest.fixture
def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(model, tokens=TOKENS):
    return model.head(model(tokens)[0])


def differences(report):
    """Return the lists of a report that say what does not fit."""
    return {k: getattr(report, k) for k in ("missing", "unexpected", "mismatched") if getattr(report, k)}


def refused(folder, *words, code=4, **options):
    with pytest.raises(HybriDNAError) as caught:
        load_published(folder, device="cpu", **options)
    assert caught.value.exit_code == code, caught.value
    for word in words:
        assert word in str(caught.value)
    return caught.value


class TestBamba:
    @pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
    def test_a_folder_written_by_save_pretrained_gives_equal_logits(self, tmp_path, shard_size):
        config = dataclasses.replace(CONFIG, layer_types=layer_pattern(6))
        oracle = make_bamba(config)
        oracle.save_pretrained(tmp_path, max_shard_size=shard_size)
        assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
        model = load_model(tmp_path, device="cpu")
        assert float((logits(model) - oracle(TOKENS).logits).abs().max()) < 1e-4
        assert differences(model.report) == {}
        assert model.report.conflicting == []
        assert [a["field"] for a in model.report.assumed] == ["token ids"]
        assert model.config == dataclasses.replace(config, eos_token_id=1, pad_token_id=None)

    def test_a_position_code_is_not_passed_over(self, tmp_path):
        oracle = make_bamba(CONFIG)
        oracle.config.rope_parameters["partial_rotary_factor"] = 0.5
        oracle.save_pretrained(tmp_path)
        error = refused(tmp_path, "config.json has position code 0.5: HybriDNA's attention has none")
        assert error.report.to_dict()["ok"] is False

    def test_granite_names(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        from bamba import randomize

        oracle = transformers.GraniteMoeHybridForCausalLM(
            transformers.GraniteMoeHybridConfig(
                vocab_size=12, hidden_size=32, intermediate_size=48, shared_intermediate_size=48, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=2, num_local_experts=0, num_experts_per_tok=0,
                position_embedding_type=None, attention_multiplier=8**-0.5, embedding_multiplier=1.0,
                residual_multiplier=1.0, logits_scaling=1.0, tie_word_embeddings=False,
                layer_types=["linear_attention", "full_attention", "linear_attention"], mamba_n_heads=4,
                mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=16,
                rms_norm_eps=1e-6, pad_token_id=None, bos_token_id=None, eos_token_id=1,
            )
        ).eval()  # fmt: skip
        randomize(oracle, 0)
        oracle.save_pretrained(tmp_path)
        model = load_model(tmp_path, device="cpu")
        assert differences(model.report) == {}
        assert not model.report.blocking
        assert {"field": "row order of fused gate_up", "value": "gate, up", "why": "shapes cannot tell"} in (
            model.report.assumed
        )
        with torch.no_grad():
            assert float((logits(model) - oracle(TOKENS).logits).abs().max()) < 1e-4

    @pytest.mark.parametrize("key", ["embedding_multiplier", "residual_multiplier", "logits_scaling"])
    def test_another_scale_is_not_passed_over(self, tmp_path, model, key):
        publish_model(tmp_path / "p", model, **{key: 6.0})
        refused(tmp_path / "p", f"config.json has {key} 6.0: another scale")

    def test_another_attention_scale_or_activation(self, tmp_path, model):
        publish_model(tmp_path / "p", model, attention_multiplier=0.015625)
        refused(tmp_path / "p", "config.json has attention_multiplier 0.015625: another scale")
        publish_model(tmp_path / "q", model, hidden_act="gelu")
        refused(tmp_path / "q", "config.json has hidden_act gelu: another activation")


ALIASES = [
    (r"^model\.", ["", "backbone.", "module.model.", "model.model.", "_orig_mod.model."]),
    (r"embed_tokens", ["embeddings", "word_embeddings", "embedding"]),
    (r"\.input_layernorm", [".norm", ".norm1"]),
    (r"pre_ff_layernorm", ["post_attention_layernorm", "pre_moe_layernorm", "norm2"]),
    (r"\.mamba\.", [".mamba2.", ".mixer."]),
    (r"self_attn", ["attn", "attention", "mixer"]),
    (r"feed_forward", ["mlp", "shared_mlp"]),
    (r"final_layernorm", ["norm", "norm_f"]),
    (r"\.layers\.", [".blocks.", ".h."]),
    (r"self_attn\.o_proj", ["attn.out_proj"]),
    (r"down_proj", ["output_linear"]),
]


class TestNames:
    @pytest.mark.parametrize("rule, other", [(rule, other) for rule, others in ALIASES for other in others])
    def test_each_alias_loads_the_same_model(self, tmp_path, model, tensors, rule, other):
        renamed = {re.sub(rule, other, name): tensor for name, tensor in tensors.items()}
        assert set(renamed) != set(tensors)
        publish(tmp_path / "p", renamed, published_config(CONFIG))
        again = load_model(tmp_path / "p", device="cpu")
        assert differences(again.report) == {}
        assert again.config == dataclasses.replace(CONFIG, hybridna_format=1)
        assert torch.equal(logits(again), logits(model))
        stored = {item["key"]: item["stored"] for item in again.report.loaded}
        assert sorted(name for names in stored.values() for name in names) == sorted(renamed)

    @pytest.mark.parametrize(
        "name, expected",
        [
            ("model.layers.3.norm.weight", Place(3, "norm1")),
            ("model.layers.3.mamba.norm.weight", Place(3, "norm")),
            ("model.norm.weight", Place(None, "final")),
            ("model.layers.3.mamba.gate_proj.weight", Place(3, "in_proj", "z")),
            ("model.layers.3.mlp.gate_proj.weight", Place(3, "gate")),
            ("model.layers.3.mixer.out_proj.weight", Place(3, "out_proj")),
            ("model.layers.3.self_attn.rotary_emb.inv_freq", "ignored"),
            ("model.layers.3.self_attn.q_proj.bias", None),
            ("model.layers.3.mamba.in_proj.bias", None),
            ("model.layers.x.mamba.D", None),
            ("score.weight", None),
        ],
    )
    def test_places(self, name, expected):
        assert place(name) == expected

    def test_fused_attention_and_mlp(self, tmp_path, model, tensors):
        for i, kind in enumerate(CONFIG.layer_types):
            mlp = f"model.layers.{i}.feed_forward."
            parts = [tensors.pop(f"{mlp}{n}_proj.weight") for n in ("gate", "up")]
            tensors[f"{mlp}gate_up_proj.weight"] = torch.cat(parts)
            if kind == "attention":
                attention = f"model.layers.{i}.self_attn."
                parts = [tensors.pop(f"{attention}{n}_proj.weight") for n in "qkv"]
                tensors[f"{attention}qkv_proj.weight"] = torch.cat(parts)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        again = load_model(tmp_path / "p", device="cpu")
        assert differences(again.report) == {}
        assert torch.equal(logits(again), logits(model))
        assert [a["field"] for a in again.report.assumed] == [
            "row order of fused qkv", "row order of fused gate_up", "token ids",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "parts",
        [
            {"gate_proj": "z", "in_proj": "xBCd"},
            {"z_proj": "z", "xBC_proj": "xBC", "dt_proj": "d"},
            {"in_proj_z": "z", "x_proj": "x", "B_proj": "B", "C_proj": "C", "in_proj_dt": "d"},
            {"dt_proj": "d", "BC_proj": "BC", "x_proj": "x", "z_proj": "z"},
        ],
    )
    def test_split_in_proj(self, tmp_path, model, tensors, parts):
        width, state, heads = CONFIG.mamba_width, CONFIG.mamba_d_state, CONFIG.mamba_n_heads
        for i, kind in enumerate(CONFIG.layer_types):
            if kind == "mamba":
                whole = tensors.pop(f"model.layers.{i}.mamba.in_proj.weight")
                rows = dict(zip("zxBCd", whole.split([width, width, state, state, heads]), strict=True))
                for name, letters in parts.items():
                    joined = torch.cat([rows[letter] for letter in letters])
                    tensors[f"model.layers.{i}.mamba.{name}.weight"] = joined
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        again = load_model(tmp_path / "p", device="cpu")
        assert differences(again.report) == {}
        assert torch.equal(logits(again), logits(model))

    def test_a_split_in_proj_that_lacks_rows(self, tmp_path, tensors):
        whole = tensors.pop("model.layers.0.mamba.in_proj.weight")
        tensors["model.layers.0.mamba.z_proj.weight"] = whole[:64]
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        assert differences(plan_import(tmp_path / "p").report) == {
            "mismatched": [
                {"key": "model.layers.0.mamba.in_proj.weight", "stored": ["model.layers.0.mamba.z_proj.weight"],
                 "shape": [64, 32], "expected": [148, 32]},
            ]
        }  # fmt: skip

    def test_tied_head(self, tmp_path):
        model = random_model(tie_word_embeddings=True)
        publish_model(tmp_path / "p", model)
        again = load_model(tmp_path / "p", device="cpu")
        assert again.config.tie_word_embeddings
        assert torch.equal(logits(again), logits(model))
        assert "tie_word_embeddings" not in [a["field"] for a in again.report.assumed]
        publish_model(tmp_path / "q", model, tie_word_embeddings=None)
        report = load_model(tmp_path / "q", device="cpu").report
        assert {"field": "tie_word_embeddings", "value": True, "why": "no lm_head is stored"} in report.assumed

    def test_a_head_that_config_denies(self, tmp_path, model, tensors):
        publish(tmp_path / "p", tensors, published_config(CONFIG, tie_word_embeddings=True))
        again = load_model(tmp_path / "p", device="cpu")
        assert torch.equal(logits(again), logits(model))
        assert [c["field"] for c in again.report.conflicting] == ["tie_word_embeddings"]
        del tensors["lm_head.weight"]
        publish(tmp_path / "q", tensors, published_config(CONFIG, tie_word_embeddings=False))
        assert differences(plan_import(tmp_path / "q").report) == {
            "missing": [{"key": "lm_head.weight", "expected": [12, 32]}]
        }

    def test_vocabulary_rows_come_from_the_tensor(self, tmp_path):
        model = random_model(vocab_size=12)
        tensors = model.state_dict()
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.randn(13, 32)])
        publish(tmp_path / "p", tensors, published_config(SMALL, vocab_size=12))
        again = load_model(tmp_path / "p", device="cpu")
        assert again.config.vocab_size == again.tokenizer.vocab_size == 25
        assert [p.digits for p in again.tokenizer.label_positions] == [10, 3]
        assert torch.equal(logits(again)[..., :12], logits(model))
        assert again.report.conflicting == [
            {"field": "vocab_size", "config": 12, "used": 25, "why": "the shapes say otherwise and count",
             "blocking": False},
        ]  # fmt: skip
        save_model(tmp_path / "ours", again)
        assert torch.equal(logits(load_model(tmp_path / "ours", device="cpu")), logits(again))

    def test_too_few_rows(self, tmp_path, tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:5].clone()
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        refused(tmp_path / "p", "5 vocabulary rows, HybriDNA has 12 or more")

    def test_named_buffers_are_ignored_and_listed(self, tmp_path, tensors):
        name = "model.layers.1.self_attn.rotary_emb.inv_freq"
        tensors[name] = torch.ones(4)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        report = load_model(tmp_path / "p", device="cpu").report
        assert report.ignored == [name]
        assert differences(report) == {}


class TestReport:
    """What does not fit, key by key, with both shapes."""

    def test_missing(self, tmp_path, tensors):
        del tensors["model.layers.2.mamba.conv1d.bias"]
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        missing = [{"key": "model.layers.2.mamba.conv1d.bias", "expected": [80]}]
        assert differences(plan_import(tmp_path / "p").report) == {"missing": missing}
        error = refused(tmp_path / "p", "tensors do not fit: 1 missing, first model.layers.2.mamba.conv1d.bias")
        assert "--allow-partial" in str(error)
        assert differences(error.report) == {"missing": missing}
        assert "MISSING model.layers.2.mamba.conv1d.bias [80]" in list(error.report.lines())

    def test_unexpected(self, tmp_path, tensors):
        tensors["score.weight"] = torch.zeros(3, 32)
        tensors["model.layers.1.mamba.D"] = torch.zeros(4)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        report = plan_import(tmp_path / "p").report
        found = sorted(report.unexpected, key=lambda item: item["key"])
        assert found == [{"key": "model.layers.1.mamba.D", "shape": [4]}, {"key": "score.weight", "shape": [3, 32]}]
        assert set(differences(report)) == {"unexpected"}
        refused(tmp_path / "p", "2 unexpected")

    def test_the_same_place_twice(self, tmp_path, tensors):
        tensors["backbone.layers.0.mamba.D"] = torch.zeros(4)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        report = plan_import(tmp_path / "p").report
        assert len(report.unexpected) == 1
        assert report.unexpected[0]["key"] in ("backbone.layers.0.mamba.D", "model.layers.0.mamba.D")

    def test_fused_beside_its_parts(self, tmp_path, tensors):
        tensors["model.layers.1.self_attn.qkv_proj.weight"] = torch.zeros(64, 32)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        assert differences(plan_import(tmp_path / "p").report) == {
            "unexpected": [{"key": "model.layers.1.self_attn.qkv_proj.weight", "shape": [64, 32]}]
        }

    @pytest.mark.parametrize(
        "name",
        ["model.layers.0.mamba.in_proj.weight", "model.layers.0.mamba.out_proj.weight",
         "model.layers.1.self_attn.k_proj.weight", "model.layers.2.feed_forward.down_proj.weight",
         "model.layers.2.feed_forward.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"],
    )  # fmt: skip
    def test_transposed(self, tmp_path, tensors, name):
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].T
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        assert differences(plan_import(tmp_path / "p").report) == {
            "mismatched": [{"key": name, "stored": [name], "shape": [columns, rows], "expected": [rows, columns]}]
        }
        refused(tmp_path / "p", f"1 mismatched, first {name}")

    def test_a_fused_tensor_of_the_wrong_size(self, tmp_path, tensors):
        mlp = "model.layers.0.feed_forward."
        parts = [tensors.pop(f"{mlp}{n}_proj.weight") for n in ("gate", "up")]
        fused = f"{mlp}gate_up_proj.weight"
        tensors[fused] = torch.cat(parts)[:-2]
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        keys = [f"{mlp}{n}_proj.weight" for n in ("gate", "up")]
        assert differences(plan_import(tmp_path / "p").report) == {
            "mismatched": [{"key": k, "stored": [fused], "shape": [94, 32], "expected": [48, 32]} for k in keys]
        }

    def test_wrong_group_count(self, tmp_path, model, tensors):
        """Groups do not show in shapes: a count that cannot be is refused, one that can be is believed."""
        publish(tmp_path / "p", tensors, published_config(CONFIG, mamba_n_groups=3))
        conflict = {
            "field": "mamba_n_groups", "config": 3, "used": 1, "blocking": True,
            "why": "must divide 8 (groups times state) and 4 heads: 1, 2, 4",
        }  # fmt: skip
        report = plan_import(tmp_path / "p").report
        assert report.conflicting == [conflict]
        assert differences(report) == {}
        refused(tmp_path / "p", "config.json has mamba_n_groups 3: must divide 8", "--n-groups")
        settled = load_published(tmp_path / "p", device="cpu", n_groups=1)
        assert torch.equal(logits(settled), logits(model))
        assert settled.report.given == [{"field": "mamba_n_groups", "value": 1}]
        assert torch.equal(logits(load_published(tmp_path / "p", device="cpu", accept_conflicts=True)), logits(model))
        refused(tmp_path / "p", "--n-groups: is 5, the shapes allow 1, 2, 4", code=2, n_groups=5)

        publish(tmp_path / "q", tensors, published_config(CONFIG, mamba_n_groups=2, mamba_d_state=4))
        believed = load_published(tmp_path / "q", device="cpu")
        assert believed.report.conflicting == []
        assert (believed.config.mamba_n_groups, believed.config.mamba_d_state) == (2, 4)
        # Another computation, far beyond rounding, and no error: only `models check` can tell.
        assert float((logits(believed) - logits(model)).abs().max()) > 1e-2

    def test_the_report_is_json_and_complete(self, tmp_path, model, tensors):
        publish(tmp_path / "p", tensors, published_config(CONFIG, mamba_chunk_size=256, router_aux=1))
        report = json.loads(json.dumps(plan_import(tmp_path / "p").report.to_dict()))
        assert report["ok"] is True
        assert report["files"] == ["model.safetensors"]
        assert report["dtypes"] == {"F32": sum(t.numel() for t in tensors.values())}
        assert report["elements"] == sum(t.numel() for t in tensors.values())
        assert report["official"] is None
        assert report["ignored_config"] == ["router_aux"]
        assert {i["key"]: tuple(i["shape"]) for i in report["loaded"]} == {
            n: tuple(t.shape) for n, t in tensors.items()
        }

    def test_partial_loading_keeps_what_fits(self, tmp_path, model, tensors):
        tensors["model.layers.0.mamba.out_proj.weight"] = tensors["model.layers.0.mamba.out_proj.weight"].T
        del tensors["model.layers.1.input_layernorm.weight"]
        tensors["score.weight"] = torch.zeros(3, 32)
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        again = load_published(tmp_path / "p", device="cpu", allow_partial=True)
        for name, tensor in model.state_dict().items():
            same = torch.equal(again.state_dict()[name], tensor)
            assert same or name in ("model.layers.0.mamba.out_proj.weight", "model.layers.1.input_layernorm.weight")
        assert torch.isfinite(logits(again)).all()


SPELLINGS = {
    "mamba_n_heads": ["mamba_num_heads", "n_mamba_heads", "num_heads", "nheads"],
    "mamba_n_groups": ["mamba_ngroups", "n_groups", "ngroups"],
    "mamba_d_state": ["state_size", "ssm_state_size", "d_state"],
    "mamba_d_conv": ["conv_kernel", "conv_kernel_size", "d_conv"],
    "rms_norm_eps": ["layer_norm_epsilon", "norm_eps"],
}


class TestConfig:
    def test_nothing_said_is_assumed_and_told(self, tmp_path, model, tensors, caplog):
        publish(tmp_path / "p", tensors, {})
        with caplog.at_level(logging.WARNING, "hybridna"):
            again = load_model(tmp_path / "p", device="cpu")
        # Key width 16 at hidden size 32: 32 heads of one channel are the largest valid count.
        why = "config.json does not say"
        shapes = "and the shapes give only"
        assert again.report.assumed == [
            {"field": "mamba_n_groups", "value": 1, "why": f"{why}, {shapes} groups times state"},
            {"field": "num_attention_heads", "value": 32, "why": f"{why}, {shapes} a ratio"},
            {"field": "rms_norm_eps", "value": 1e-6, "why": why},
            {"field": "max_position_embeddings", "value": 131_072,
             "why": "neither config.json nor the tokenizer's files say"},
            {"field": "token ids", "value": "A 7, C 8, G 9, T 10, N 11", "why": "no tokenizer file gives them"},
        ]  # fmt: skip
        told = [r.message for r in caplog.records if "ASSUMED" in r.message]
        assert len(told) == 5
        assert told[0].startswith("p: ASSUMED mamba_n_groups = 1 (config.json does not say")
        settled = load_published(tmp_path / "p", device="cpu", attention_heads=4)
        assert torch.equal(logits(settled), logits(model))

    def test_no_config_at_all(self, tmp_path, tensors):
        publish(tmp_path / "p", tensors, {})
        os.unlink(tmp_path / "p" / "config.json")
        assert plan_import(tmp_path / "p").config.num_hidden_layers == 3

    @pytest.mark.parametrize("field, other", [(f, o) for f, others in SPELLINGS.items() for o in others])
    def test_every_spelling(self, tmp_path, tensors, field, other):
        table = published_config(dataclasses.replace(CONFIG, rms_norm_eps=1e-5, mamba_n_groups=2, mamba_d_state=4))
        table[other] = table.pop(field)
        publish(tmp_path / "p", tensors, table)
        plan = plan_import(tmp_path / "p")
        assert plan.report.conflicting == []
        assert [a["field"] for a in plan.report.assumed] == ["token ids"]
        assert plan.config.rms_norm_eps == 1e-5
        assert plan.config.mamba_n_groups == 2

    @pytest.mark.parametrize(
        "changes, field, used, blocking",
        [
            ({"hidden_size": 64}, "hidden_size", 32, False),
            ({"num_hidden_layers": 32}, "num_hidden_layers", 3, False),
            ({"mamba_expand": 4}, "mamba_expand", 2, False),
            ({"mamba_d_head": 64}, "mamba_d_head", 16, False),
            ({"mamba_n_heads": 128}, "mamba_n_heads", 4, False),
            # Jamba's stale default beside a group count: the shapes settle it.
            ({"mamba_d_state": 16}, "mamba_d_state", 8, False),
            # Alone it may mean one group or several.
            ({"mamba_d_state": 4, "mamba_n_groups": None}, "mamba_d_state", 8, True),
            ({"mamba_d_state": 5, "mamba_n_groups": None}, "mamba_d_state", 8, False),
            ({"attn_layer_period": 8, "attn_layer_offset": 4}, "attention layers", [1], False),
            ({"attn_layer_indices": [0]}, "attention layers", [1], False),
            ({"layers_block_type": ["attention", "mamba", "mamba"]}, "attention layers", [1], False),
            ({"num_attention_heads": 5}, "num_attention_heads", 32, True),
            ({"num_attention_heads": [4]}, "num_attention_heads", 32, True),
            ({"num_key_value_heads": 4}, "num_key_value_heads", 2, True),
            ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon", 1e-6, False),
            ({"time_step_limit": [0.1, 0.01]}, "time_step_limit", None, False),
            ({"partial_rotary_factor": 0.5}, "position code", None, True),
            ({"position_embedding_type": "rope"}, "position code", None, True),
        ],
    )
    def test_conflicts(self, tmp_path, tensors, changes, field, used, blocking):
        publish(tmp_path / "p", tensors, published_config(CONFIG, **changes))
        report = plan_import(tmp_path / "p").report
        found = {c["field"]: c for c in report.conflicting}
        assert found[field]["used"] == used
        assert found[field]["blocking"] == blocking
        assert any(line.startswith(f"CONFLICT {field}: config.json has") for line in report.lines())
        if blocking:
            refused(tmp_path / "p", f"config.json has {field}")
        else:
            load_published(tmp_path / "p", device="cpu")

    def test_agreeing_placements_are_no_conflict(self, tmp_path, tensors):
        kinds = ["linear_attention", "full_attention", "linear_attention"]
        period = {"attn_layer_period": 3, "attn_layer_offset": 1}
        for i, said in enumerate((period, {"attn_layer_indices": [1]}, {"layer_types": kinds})):
            publish(tmp_path / f"p{i}", tensors, published_config(CONFIG, **said))
            assert plan_import(tmp_path / f"p{i}").report.conflicting == []

    @pytest.mark.parametrize(
        "text, limit",
        [
            ("[0.0, Infinity]", None),
            ('[0.0, {"__float__": "Infinity"}]', None),
            ("[0.001, 0.1]", (0.001, 0.1)),
            ("[0.001, Infinity]", (0.001, 3.0e38)),
            ("null", None),
        ],
    )
    def test_dt_limits(self, tmp_path, tensors, text, limit):
        publish(tmp_path / "p", tensors, {})
        (tmp_path / "p" / "config.json").write_text(f'{{"time_step_limit": {text}, "time_step_min": 0.001}}')
        plan = plan_import(tmp_path / "p")
        assert plan.config.time_step_limit == limit
        assert plan.report.conflicting == []

    def test_code_is_listed_and_never_run_d13_d16(self, tmp_path, model, tensors, caplog):
        canary = tmp_path / "canary"
        publish(tmp_path / "p", tensors, published_config(CONFIG, auto_map={"AutoModel": "modeling_x.X"}, hiden_size=1))
        (tmp_path / "p" / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')\nclass X: pass\n")
        again = load_model(tmp_path / "p", device="cpu")
        assert torch.equal(logits(again), logits(model))
        assert again.report.ignored_config == ["auto_map", "hiden_size"]
        assert again.report.code == ["modeling_x.py"]
        assert any("never run: modeling_x.py" in r.message for r in caplog.records)
        assert not canary.exists()

    def test_unsound_json(self, tmp_path, tensors):
        publish(tmp_path / "p", tensors, {})
        for text, words in (('{"a": 1, "a": 2}', "stands twice"), ("[]", "must hold one table"), ("{", "not JSON")):
            (tmp_path / "p" / "config.json").write_text(text)
            with pytest.raises(UsageError, match=words):
                plan_import(tmp_path / "p")

    @settings(max_examples=60, deadline=None)
    @given(
        table=st.dictionaries(
            st.sampled_from(
                [*published_config(CONFIG), "n_groups", "state_size", "time_step_limit", "attn_layer_indices",
                 "attn_layer_period", "attn_layer_offset", "layer_types", "rope_parameters", "eos_token_id",
                 "hidden_act", "attention_multiplier", "embedding_multiplier", "pad_token_id", "expand"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers(-3, 40) | st.integers() | st.text(max_size=4)
                | st.floats(allow_nan=False),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                max_leaves=5,
            ),
            max_size=6,
        )
    )  # fmt: skip
    def test_any_config_gives_a_report_or_one_line(self, toy_headers, table):
        (toy_headers / "config.json").write_text(json.dumps(table))
        try:
            report = plan_import(toy_headers).report
        except HybriDNAError as error:
            assert error.exit_code in (2, 4)
        else:
            json.dumps(report.to_dict())
            assert list(report.lines())


@pytest.fixture(scope="module")
def toy_headers(tmp_path_factory):
    return publish_headers(tmp_path_factory.mktemp("headers") / "p", CONFIG, {})


OFFICIAL = {"300m": ("300M", 297_534_688, 303), "3b": ("3B", 3_119_400_960, 203), "7b": ("7B", 6_253_397_504, 403)}


class TestOfficialSizes:
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("name", OFFICIAL)
    def test_structure_from_headers_alone(self, tmp_path, name, shards):
        publish_headers(tmp_path / "p", PRESETS[name], {}, shards=shards)
        plan = plan_import(tmp_path / "p")
        size, elements, count = OFFICIAL[name]
        # The published structure, with what the released code does about a start token.
        assert plan.config == dataclasses.replace(PRESETS[name], bos_token_id=None)
        assert plan.report.elements == elements
        assert plan.report.official == size
        assert len(plan.report.loaded) == count
        assert differences(plan.report) == {}
        assert next(plan.report.lines()) == f"{elements:,} elements: matches official {size}"
        assert len(plan.report.files) == shards

    def test_state_total_differs_between_3b_and_7b(self, tmp_path):
        totals = {}
        for name in ("3b", "7b"):
            publish_headers(tmp_path / name, PRESETS[name], {})
            totals[name] = plan_import(tmp_path / name).facts.state_total
        assert totals == {"3b": 64, "7b": 128}

    def test_jambas_stale_state_size_is_settled_by_a_flag(self, tmp_path):
        publish_headers(tmp_path / "p", PRESETS["7b"], {"mamba_d_state": 16})
        assert [c["field"] for c in plan_import(tmp_path / "p").report.blocking] == ["mamba_d_state"]
        plan = plan_import(tmp_path / "p", n_groups=8)
        assert (plan.config.mamba_n_groups, plan.config.mamba_d_state) == (8, 16)
        assert plan.report.blocking == []

    def test_what_the_shapes_leave_open(self, tmp_path):
        publish_headers(tmp_path / "p", PRESETS["300m"], {})
        facts = plan_import(tmp_path / "p").facts
        assert group_counts(facts) == [1, 2, 4, 8, 16, 32]
        assert (32, 8) in head_layouts(facts)
        assert (16, 4) in head_layouts(facts)
        assert all(q == 4 * kv for q, kv in head_layouts(facts))


class TestFiles:
    def test_stored_dtype_is_kept_on_request(self, tmp_path, model, tensors):
        narrow = {n: t.bfloat16() for n, t in tensors.items()}
        publish(tmp_path / "p", narrow, published_config(CONFIG))
        kept = load_published(tmp_path / "p", device="cpu", dtype="auto")
        assert kept.dtype == torch.bfloat16
        assert kept.model.layers[0].mamba.A_log.dtype == torch.float32
        assert kept.report.dtypes == {"BF16": kept.report.elements}
        wide = load_model(tmp_path / "p", device="cpu")
        assert wide.dtype == torch.float32
        assert torch.equal(wide.lm_head.weight, narrow["lm_head.weight"].float())

    def test_mixed_dtypes_lose_nothing(self, tmp_path, tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
        tensors["model.layers.0.mamba.A_log"] = tensors["model.layers.0.mamba.A_log"].double()
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        again = load_published(tmp_path / "p", device="cpu", dtype="auto")
        assert again.dtype == torch.float32
        assert set(again.report.dtypes) == {"F32", "BF16", "F64"}

    def test_non_finite_weights_d9(self, tmp_path, tensors):
        tensors["lm_head.weight"][7, 0] = float("nan")
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        refused(tmp_path / "p", "lm_head.weight: 1 of 384 weights are NaN or infinite; --allow-nonfinite")
        load_published(tmp_path / "p", device="cpu", allow_nonfinite=True)

    def test_pickled_weights_are_refused(self, tmp_path, tensors):
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        os.unlink(tmp_path / "p" / "model.safetensors")
        torch.save(tensors, tmp_path / "p" / "pytorch_model.bin")
        refused(tmp_path / "p", "the weights are a pickle (pytorch_model.bin); save it as safetensors first")

    def test_a_shard_is_missing_d3(self, tmp_path):
        publish_headers(tmp_path / "p", CONFIG, {}, shards=3)
        os.unlink(tmp_path / "p" / "model-00002-of-00003.safetensors")
        refused(tmp_path / "p", "model-00002-of-00003.safetensors: shard is missing; download or copy it again")

    def test_an_index_that_leads_outside(self, tmp_path):
        publish_headers(tmp_path / "p", CONFIG, {}, shards=2)
        index = {"weight_map": {"lm_head.weight": "../other.safetensors"}}
        (tmp_path / "p" / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(tmp_path / "p", "shard name '../other.safetensors' leads out of the folder")

    def test_one_tensor_in_two_shards(self, tmp_path):
        publish_headers(tmp_path / "p", CONFIG, {}, shards=2)
        first = (tmp_path / "p" / "model-00001-of-00002.safetensors").read_bytes()
        (tmp_path / "p" / "model-00002-of-00002.safetensors").write_bytes(first)
        refused(tmp_path / "p", "stands in model-00001-of-00002.safetensors too")

    def test_not_this_kind_of_model(self, tmp_path):
        publish(tmp_path / "p", {"encoder.weight": torch.zeros(2, 2)}, {})
        refused(tmp_path / "p", "no layers found among the tensor names; is it a HybriDNA model?")
        publish(tmp_path / "q", {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, {})
        refused(tmp_path / "q", "no tensor tells the hidden size")

    def test_digest_is_of_the_file(self, tmp_path, model):
        from hybridna_core.checkpoint import sha256

        publish_model(tmp_path / "p", model)
        assert load_model(tmp_path / "p", device="cpu").digest == sha256(tmp_path / "p" / "model.safetensors")


class TestTokenizerFiles:
    @pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json", "vocab.txt", "characters"])
    def test_letters_in_another_order_are_put_in_ours(self, tmp_path, model, tensors, form):
        """A folder whose T stands before G: read through its tokenizer's files it gives our numbers."""
        order = "ACTGN"
        rows = [*range(7), *(7 + order.index(c) for c in "ACGTN")]
        stored = dict(tensors)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            stored[name] = torch.empty_like(tensors[name])
            stored[name][rows] = tensors[name]
        publish(tmp_path / "p", stored, published_config(CONFIG))
        specials = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"]
        vocabulary = {token: i for i, token in enumerate([*specials, *order])}
        if form == "vocab.json":
            (tmp_path / "p" / form).write_text(json.dumps(vocabulary))
        elif form == "tokenizer.json":
            (tmp_path / "p" / form).write_text(json.dumps({"model": {"vocab": vocabulary}}))
        elif form == "vocab.txt":
            (tmp_path / "p" / form).write_text("\n".join(vocabulary))
        else:
            (tmp_path / "p" / "tokenizer_config.json").write_text(json.dumps({"characters": list(order)}))
        again = load_model(tmp_path / "p", device="cpu")
        assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
        assert torch.equal(logits(again), logits(model))
        assert again.report.given == [{"field": "token ids", "value": f"rows {rows} by the tokenizer's files"}]

    def test_agreeing_files_change_nothing(self, tmp_path, model, tensors):
        publish(tmp_path / "p", tensors, published_config(CONFIG, max_position_embeddings=None))
        table = {"characters": list("ACGTN"), "model_max_length": 131_074}
        (tmp_path / "p" / "tokenizer_config.json").write_text(json.dumps(table))
        again = load_model(tmp_path / "p", device="cpu")
        assert torch.equal(logits(again), logits(model))
        assert again.report.given == again.report.assumed == []
        assert again.config.max_position_embeddings == 131_074

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"model": 3}', '{"model": {"vocab": {"A": "x"}}}', '{"characters": 3}']
    )
    def test_odd_files_say_nothing(self, tmp_path, model, tensors, text):
        publish(tmp_path / "p", tensors, published_config(CONFIG))
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
            (tmp_path / "p" / name).write_text(text)
        again = load_model(tmp_path / "p", device="cpu")
        assert torch.equal(logits(again), logits(model))
        assert [a["field"] for a in again.report.assumed] == ["token ids"]


def test_errors_carry_the_report(tmp_path, tensors):
    del tensors["lm_head.weight"]
    publish(tmp_path / "p", tensors, published_config(CONFIG))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "p", device="cpu")
    assert caught.value.report.missing[0]["key"] == "lm_head.weight"
