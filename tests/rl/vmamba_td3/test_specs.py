"""The specs that come with the trainer say what they claim to: the documents' sizes, and runs that are all good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiment.grid import expand_grid
from experiment.plan import nest_settings
from experiment.spec import load_spec
from rl.vmamba_td3.config import VMambaTD3Config
from rl.vmamba_td3.presets import PRESETS, Preset

SPECS = Path(__file__).parents[3] / "exp_specs/vmamba_td3"
RUNS = {"ultra_light": 3, "light": 3, "standard": 3, "heavy": 3, "quick": 6, "memory_cue": 12, "size_sweep": 12}


def expand(name: str) -> list[dict[str, Any]]:
    return [dict(nest_settings(combination.settings)) for combination in expand_grid(load_spec(SPECS / f"{name}.yaml"))]


def read_size(config: VMambaTD3Config) -> tuple[Any, ...]:
    dims = (config.feature_dim, config.state_feature_dim, config.hidden_dim, config.vmamba_temporal_layers)
    return config.vmamba_hidden_dim, tuple(config.vmamba_num_vss_blocks), *dims


def size_of(preset: Preset) -> tuple[Any, ...]:
    dims = (preset.feature_dim, preset.state_feature_dim, preset.hidden_dim, preset.temporal_layers)
    return preset.trunk.hidden_dim, preset.trunk.num_vss_blocks, *dims


def test_no_spec_is_left_out_here() -> None:
    assert {path.stem for path in SPECS.glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_a_spec_is_a_good_one(name: str) -> None:
    configs = [VMambaTD3Config(**settings) for settings in expand(name)]
    assert len(configs) == RUNS[name]
    assert [fault for config in configs for fault in config.find_contradictions()] == []
    assert [fault for config in configs for fault in config.find_environment_faults()] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_documented_size_is_the_same_in_its_spec_as_in_the_table(name: str) -> None:
    preset = PRESETS[name]
    for settings in expand(name):
        config = VMambaTD3Config(**settings)
        assert read_size(config) == size_of(preset)
        assert (config.batch_size, config.seq_len) == (preset.batch_size, preset.seq_len)


def test_the_sweep_over_sizes_has_the_documents_sizes_and_differs_in_nothing_else() -> None:
    configs = [VMambaTD3Config(**settings) for settings in expand("size_sweep")]
    sizes = {size_of(preset) for preset in PRESETS.values()}
    assert {read_size(config) for config in configs} == sizes
    shape = ("vmamba_hidden_dim", "vmamba_num_vss_blocks", "feature_dim", "state_feature_dim", "hidden_dim")
    exclude = {*shape, "vmamba_temporal_layers", "seed"}
    assert len({config.model_dump_json(exclude=exclude) for config in configs}) == 1
    assert {(read_size(config), config.seed) for config in configs} == {(size, s) for size in sizes for s in range(3)}
