"""Configurations: presets, strict parsing, and the message for each way to get one wrong."""

import json

import pytest

from hybridna_core.config import PRESETS, build, layer_pattern, preset, read_json, read_model_config
from hybridna_core.config import ModelConfig as Config
from hybridna_core.errors import UsageError

GOOD = {
    "hidden_size": 32, "intermediate_size": 64, "layer_types": ["mamba", "attention"], "num_attention_heads": 4,
    "num_key_value_heads": 2, "mamba_n_heads": 2, "mamba_d_state": 8,
}  # fmt: skip


def refused(**changes):
    table = {**GOOD, **changes}
    with pytest.raises(UsageError) as caught:
        build(Config, {k: v for k, v in table.items() if v != "absent"}, "config.json")
    assert caught.value.exit_code == 2
    return str(caught.value)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name, layers, attention", [
    ("300m", 24, [4, 12, 20]), ("3b", 16, [4, 12]), ("7b", 32, [4, 12, 20, 28]), ("tiny", 8, [4]),
])  # fmt: skip
def test_presets(name, layers, attention):
    config = preset(name)
    assert config.num_hidden_layers == layers
    assert [i for i, kind in enumerate(config.layer_types) if kind == "attention"] == attention
    assert config.mamba_n_groups == 1 and config.vocab_size == 12


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="no preset called '300mm'; did you mean '300m'"):
        preset("300mm")
    assert set(PRESETS) == {"300m", "3b", "7b", "tiny"}


def test_layer_pattern():
    assert layer_pattern(6, period=3, offset=1) == ("mamba", "attention", "mamba") * 2


def test_derived_widths():
    config = build(Config, GOOD, "x")
    assert (config.head_dim, config.mamba_width, config.conv_width) == (8, 128, 144)
    assert config.bases_at_once == config.context_length - 1
    assert build(Config, {**GOOD, "bos_token_id": None}, "x").bases_at_once == config.context_length


def test_d16_unknown_key_names_the_nearest():
    assert "unknown key 'hidden_sise'; did you mean 'hidden_size'?" in refused(hidden_sise=3)
    assert "known keys:" in refused(qqqqqq=3)


@pytest.mark.parametrize("changes, words", [
    ({"hidden_size": 0}, "hidden_size: is 0, must be a whole number of at least 1"),
    ({"hidden_size": -4}, "hidden_size: is -4"),
    ({"hidden_size": 32.0}, "hidden_size: is 32.0, must be a whole number"),
    ({"hidden_size": True}, "hidden_size: is True"),
    ({"hidden_size": "32"}, "hidden_size: is '32'"),
    ({"hidden_size": 30}, "must be a multiple of num_attention_heads (4)"),
    ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads (3)"),
    ({"mamba_n_groups": 3}, "must be a multiple of mamba_n_groups (3)"),
    ({"layer_types": ["mamba", "moe"]}, "layer_types[1]: is 'moe', must be 'mamba' or 'attention'"),
    ({"layer_types": []}, "must be one entry per layer"),
    ({"vocab_size": 11}, "must be 12 or more"),
    ({"rms_norm_eps": 0.0}, "must be between 0 and 1"),
    ({"time_step_limit": [0.5, 0.1]}, "two numbers, 0 <= low < high"),
    ({"time_step_limit": [0.5]}, "time_step_limit: is (0.5,), must be a list of 2 (a finite number each) or null"),
    ({"bos_token_id": 12}, "must be null or 0 to 11"),
    ({"hidden_size": "absent"}, "key 'hidden_size' is missing"),
])  # fmt: skip
def test_d17_wrong_values(changes, words):
    message = refused(**changes)
    assert words in message and message.startswith("config.json")


def test_d17_layer_count_must_fit_the_pattern(tmp_path):
    path = write(tmp_path / "config.json", json.dumps({**GOOD, "num_hidden_layers": 3}))
    with pytest.raises(UsageError, match="num_hidden_layers: is 3, but layer_types has 2 entries"):
        read_model_config(path)


@pytest.mark.parametrize("text, words", [
    ('{"a": 1, "a": 2}', "key 'a' stands twice"),
    ('{"a": NaN}', "NaN is not a number in JSON"),
    ('{"a": -Infinity}', "-Infinity is not a number in JSON"),
    ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    ('{"a": 1,}', "config.json:1: not JSON"),
    ('{\n"a" 1}', "config.json:2: not JSON"),
])  # fmt: skip
def test_d18_strict_json(tmp_path, text, words):
    path = write(tmp_path / "config.json", text)
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert words in str(caught.value)


def test_d18_json_size_and_encoding(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"[" + b"0," * 2**23 + b"0]")
    with pytest.raises(UsageError, match="at most 8,388,608 are read"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UsageError, match="not UTF-8 at byte 7"):
        read_json(path)


def test_config_survives_its_own_file(tmp_path):
    config = build(Config, {**GOOD, "time_step_limit": [0, 1]}, "x")
    path = write(tmp_path / "config.json", json.dumps(config.to_dict()))
    assert read_model_config(path) == config
