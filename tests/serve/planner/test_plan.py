"""Plans compared with the table of physical limits, with golden files, and with vLLM's own parser.

`python -m tests.serve.planner.test_plan` rewrites the golden files; review the diff before committing it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config import load, vllm_flags
from pedcxr_serve.errors import CheckpointError, ConfigError
from pedcxr_serve.planner import devices, plan, roofline
from pedcxr_serve.planner.plan import EnginePlan
from tests.support import checkpoint_folders as folders

GOLDEN = Path(__file__).parent / "golden"
CASES = (*((f"4b-{name}", "4b", name) for name in devices.TABLE), ("demo-cpu", "demo", "cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return inspect_models(tmp_path_factory.mktemp("models"))


def inspect_models(folder: Path) -> dict[str, Checkpoint]:
    return {
        "4b": inspect.inspect(folders.medgemma_4b(folder / "4b")),
        "demo": inspect.inspect(folders.demo(folder / "demo")),
    }


def make_plan(checkpoint: Checkpoint, key: str, *, table: str = "engine", **settings: object) -> EnginePlan:
    served = "pedcxr-demo" if checkpoint.parameters < 1e9 else "medgemma-4b-it-ped"
    names = {"served_name": served, "model": f"/models/{served}"}
    config = load.load(None, names | {f"{table}.{name}": value for name, value in settings.items()})
    socket = Path("/run/pedcxr/engine.sock")
    return plan.make(checkpoint, devices.TABLE[key], config, model_dir=Path(config.model), socket=socket)


def value(engine_plan: EnginePlan, flag: str) -> str:
    return engine_plan.argv[engine_plan.argv.index(flag) + 1]


def test_4b_model_on_an_h200_has_the_figures_of_the_table(models: dict[str, Checkpoint]) -> None:
    engine_plan = make_plan(models["4b"], "h200")

    assert engine_plan.kv_bytes_per_token == 139_264
    assert engine_plan.tokens_per_report == 800
    assert engine_plan.weights_bytes == pytest.approx((3.88e9 + 0.416e9) * 2, rel=0.02)
    assert engine_plan.reports_at_once == pytest.approx(1060, rel=0.02)
    assert engine_plan.upper_bound.reports_per_s == pytest.approx(41, rel=0.02)
    assert engine_plan.upper_bound.reports_per_s_at_60 == pytest.approx(32, rel=0.02)
    assert (engine_plan.max_num_seqs, engine_plan.max_num_batched_tokens, engine_plan.api_server_count) == (
        512,
        2048,
        4,
    )


@pytest.mark.parametrize(
    ("key", "at_once", "best", "at_60", "digit"),
    [
        ("h200", 1060, 41, 32, 1),
        ("h100", 560, 35, 27, 1),
        ("a100-80", 560, 14, 12, 1),
        ("l40s", 296, 10, 7, 1),
        ("l4", 98, 2.6, 1.8, 0.1),
    ],
)
def test_every_row_of_the_table_is_reproduced_to_its_last_digit(
    models: dict[str, Checkpoint], key: str, at_once: int, best: float, at_60: float, digit: float
) -> None:
    engine_plan = make_plan(models["4b"], key)

    assert engine_plan.reports_at_once == pytest.approx(at_once, abs=5 if at_once % 10 == 0 else 0.5)
    assert engine_plan.upper_bound.reports_per_s == pytest.approx(best, abs=digit / 2)
    assert engine_plan.upper_bound.reports_per_s_at_60 == pytest.approx(at_60, abs=digit / 2)


def test_operations_per_report_equal_the_table(models: dict[str, Checkpoint]) -> None:
    shape = models["4b"].shape
    assert shape is not None

    assert roofline.vision_flop(shape) == pytest.approx(5.46e12, rel=0.001)
    assert roofline.prefill_flop(shape, 300) == pytest.approx(1.94e12, rel=0.002)
    assert 500 * 2 * shape.text_parameters == pytest.approx(3.88e12, rel=0.001)
    step = roofline.decode_step_s(shape, devices.TABLE["h200"], 100, dtype_bytes=2, new_tokens=500)
    assert step == pytest.approx((7.76e9 + 100 * 76.6e6) / 4.8e12, rel=0.001)


@pytest.mark.parametrize(("name", "model", "key"), CASES, ids=[case[0] for case in CASES])
def test_plan_text_equals_the_golden_file(models: dict[str, Checkpoint], name: str, model: str, key: str) -> None:
    assert plan.render(make_plan(models[model], key)) + "\n" == (GOLDEN / f"plan-{name}.txt").read_text()


def test_plan_does_not_exceed_the_roofline(models: dict[str, Checkpoint]) -> None:
    for key in devices.TABLE:
        engine_plan = make_plan(models["4b"], key)
        assert engine_plan.max_num_seqs <= engine_plan.reports_at_once
        assert engine_plan.expected.reports_per_s <= engine_plan.upper_bound.reports_per_s
        assert engine_plan.upper_bound.reports_per_s_at_60 < engine_plan.upper_bound.reports_per_s


def test_gpu_and_cpu_plans_have_only_their_own_flags(models: dict[str, Checkpoint]) -> None:
    gpu, cpu = make_plan(models["4b"], "h100"), make_plan(models["demo"], "cpu")

    assert (gpu.dtype, cpu.dtype) == ("bfloat16", "float32")
    assert "--disable-chunked-mm-input" in cpu.argv
    assert "--disable-chunked-mm-input" not in gpu.argv
    assert "--enforce-eager" in cpu.argv
    assert "--enforce-eager" not in gpu.argv
    assert value(gpu, "--gpu-memory-utilization") == "0.92"
    assert "--gpu-memory-utilization" not in cpu.argv
    assert dict(cpu.env)["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in dict(gpu.env)
    assert dict(cpu.env)["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in dict(gpu.env)
    assert "VLLM_CPU_NUM_OF_RESERVED_CPU" not in dict(cpu.env)
    assert (cpu.max_num_seqs, cpu.limited_by, cpu.max_num_batched_tokens) == (32, "16 for each CPU core", 2048)
    assert (cpu.max_preparing, cpu.max_starting) == (1, 5)
    assert (gpu.max_preparing, gpu.max_starting) == (8, 16)


def test_settings_override_the_plan(models: dict[str, Checkpoint]) -> None:
    engine_plan = make_plan(
        models["demo"],
        "cpu",
        max_num_seqs=100,
        max_num_batched_tokens=512,
        api_server_count=3,
        enforce_eager=False,
        block_size=32,
        max_new_tokens=200,
        extra_args=["--seed", "7"],
        log_level="debug",
    )

    assert (engine_plan.max_num_seqs, engine_plan.limited_by) == (100, "engine.max_num_seqs")
    assert value(engine_plan, "--max-num-batched-tokens") == "512"
    assert value(engine_plan, "--api-server-count") == "3"
    assert "--enforce-eager" not in engine_plan.argv
    assert "TORCHDYNAMO_DISABLE" not in dict(engine_plan.env)
    assert value(engine_plan, "--block-size") == "32"
    assert engine_plan.tokens_per_report == 308
    assert json.loads(value(engine_plan, "--override-generation-config")) == {"temperature": 0, "max_new_tokens": 200}
    assert engine_plan.argv[-2:] == ("--seed", "7")
    assert dict(engine_plan.env)["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_settings_override_preparing_and_starting_limits(models: dict[str, Checkpoint]) -> None:
    def starting(**settings: int) -> tuple[int, int]:
        engine_plan = make_plan(models["4b"], "h200", table="gateway", **settings)
        return engine_plan.max_preparing, engine_plan.max_starting

    assert starting() == (8, 16)
    assert starting(max_preparing=4) == (4, 12)
    assert starting(max_starting=10) == (8, 10)
    assert starting(max_preparing=2, max_starting=6) == (2, 6)


def test_shorter_itl_target_gives_fewer_concurrent_reports(models: dict[str, Checkpoint]) -> None:
    engine_plan = make_plan(models["4b"], "l4", target_itl_ms=33)

    assert (engine_plan.max_num_seqs, engine_plan.limited_by) == (24, "engine.target_itl_ms = 33")
    assert make_plan(models["4b"], "l4", target_itl_ms=1).max_num_seqs == 1


def test_preprocessing_uses_at_most_a_quarter_of_the_cores(models: dict[str, Checkpoint]) -> None:
    small = replace(devices.TABLE["h200"], cores=4)
    engine_plan = plan.make(models["4b"], small, load.load(None, {}), model_dir=Path("/m"), socket=Path("/s"))

    assert engine_plan.api_server_count == 1


def test_float32_on_a_gpu_is_not_rounded_to_tf32(models: dict[str, Checkpoint]) -> None:
    assert dict(make_plan(models["4b"], "h200", dtype="float32").env)["TRITON_F32_DEFAULT"] == "ieee"
    assert "TRITON_F32_DEFAULT" not in dict(make_plan(models["4b"], "h200").env)
    assert "TRITON_F32_DEFAULT" not in dict(make_plan(models["demo"], "cpu").env)


def test_engine_numbers_gpus_as_the_planner_does(models: dict[str, Checkpoint]) -> None:
    """CUDA_VISIBLE_DEVICES=1 is NVML's second GPU for the planner; for CUDA it would be the second fastest."""
    assert dict(make_plan(models["4b"], "l4").env)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in dict(make_plan(models["demo"], "cpu").env)


def test_events_of_a_gpu_hold_four_tokens(models: dict[str, Checkpoint]) -> None:
    assert value(make_plan(models["4b"], "h200"), "--stream-interval") == "4"
    assert value(make_plan(models["demo"], "cpu"), "--stream-interval") == "1"
    assert value(make_plan(models["4b"], "h200", stream_interval=2), "--stream-interval") == "2"


def test_engine_sends_the_traces_of_recorded_requests_only_where_the_gateway_does(
    models: dict[str, Checkpoint],
) -> None:
    url = "http://127.0.0.1:4318/v1/traces"
    traced = make_plan(models["demo"], "cpu", table="telemetry", otlp_endpoint=url)
    assert value(traced, "--otlp-traces-endpoint") == url
    added = dict(traced.env)
    assert added["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert added["OTEL_TRACES_SAMPLER"] == "parentbased_always_off"

    plain = make_plan(models["demo"], "cpu")
    assert "--otlp-traces-endpoint" not in plain.argv and not any(name.startswith("OTEL") for name, _ in plain.env)


def test_kv_cache_of_a_cpu_holds_all_reports_or_what_fits(models: dict[str, Checkpoint]) -> None:
    demo = make_plan(models["demo"], "cpu")
    assert demo.reports_at_once >= demo.max_num_seqs == 32
    wide = make_plan(models["demo"], "cpu", max_num_seqs=512, max_model_len=4096, max_new_tokens=3988)
    gib = int(dict(wide.env)["VLLM_CPU_KVCACHE_SPACE"])
    assert gib > 1 and wide.kv_capacity_bytes == gib * 2**30
    assert wide.reports_at_once >= 512 > (gib - 1) * 2**30 // (4096 * wide.kv_bytes_per_token)
    assert make_plan(models["4b"], "cpu").kv_capacity_bytes == 2**30, "weights leave no more room"
    assert make_plan(models["demo"], "cpu", cpu_kv_cache_gib=3).kv_capacity_bytes == 3 * 2**30


def test_a_large_model_computes_on_both_of_two_cores(models: dict[str, Checkpoint]) -> None:
    assert dict(make_plan(models["4b"], "cpu").env)["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"
    four = replace(devices.TABLE["cpu"], cores=4)
    wide = plan.make(models["4b"], four, load.load(None, {}), model_dir=Path("/m"), socket=Path("/s"))
    assert "VLLM_CPU_NUM_OF_RESERVED_CPU" not in dict(wide.env)


def test_gpu_before_ampere_uses_float32(models: dict[str, Checkpoint]) -> None:
    old = replace(devices.TABLE["l40s"], compute_capability=(7, 5))
    engine_plan = plan.make(models["4b"], old, load.load(None, {}), model_dir=Path("/m"), socket=Path("/s"))

    assert engine_plan.dtype == "float32"
    assert engine_plan.weights_bytes == 4 * models["4b"].parameters


def test_model_that_does_not_fit_is_rejected_with_its_memory_needs(models: dict[str, Checkpoint]) -> None:
    small = replace(devices.TABLE["l4"], memory_bytes=8 * 10**9)
    with pytest.raises(ConfigError, match=r"weights take 8\.6 GB.*max_model_len") as raised:
        plan.make(models["4b"], small, load.load(None, {}), model_dir=Path("/m"), socket=Path("/s"))
    assert "gpu_memory_utilization = 0.92" in str(raised.value)
    with pytest.raises(ConfigError, match="cpu_kv_cache_gib = 100"):
        make_plan(models["demo"], "cpu", cpu_kv_cache_gib=100)


def test_step_smaller_than_an_image_is_rejected(models: dict[str, Checkpoint]) -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens = 128: must be at least 512"):
        make_plan(models["4b"], "h100", max_num_batched_tokens=128)


def test_long_socket_path_is_rejected(models: dict[str, Checkpoint]) -> None:
    with pytest.raises(ConfigError, match="too long"):
        plan.make(
            models["demo"],
            devices.TABLE["cpu"],
            load.load(None, {}),
            model_dir=Path("/m"),
            socket=Path("/" + "x" * 107),
        )


def test_checkpoint_without_a_config_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pedcxr-serve check"):
        make_plan(inspect.inspect(tmp_path), "cpu")


def test_every_planned_flag_is_refused_as_extra_argument(models: dict[str, Checkpoint]) -> None:
    for engine_plan in (make_plan(models["4b"], "h200"), make_plan(models["demo"], "cpu", block_size=32)):
        for flag in (word for word in engine_plan.argv if word.startswith("--")):
            assert vllm_flags.forbidden_reason([flag]), flag


# Prints the arguments that vLLM's parser reads from each plan, and all flags of the parser.
PARSE = """
import json, sys
from vllm.config import ObservabilityConfig
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
parsed = []
for argv in json.load(sys.stdin):
    args = vars(parser.parse_args(argv))
    ObservabilityConfig(custom_histogram_buckets=args["custom_histogram_buckets"])
    parsed.append({k: v for k, v in args.items() if isinstance(v, (str, int, float, dict, type(None)))})
print(json.dumps({"parsed": parsed, "flags": sorted(o for a in serve._actions for o in a.option_strings)}))
"""


@pytest.mark.slow
def test_vllm_parses_every_plan_and_knows_every_refused_flag(models: dict[str, Checkpoint]) -> None:
    if find_spec("vllm") is None:  # find_spec does not import vLLM, which would take half a minute
        pytest.skip("needs pedcxr[cpu] or pedcxr[gpu]")
    plans = [make_plan(models["4b"], key) for key in devices.TABLE] + [make_plan(models["demo"], "cpu", block_size=32)]

    process = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps([engine_plan.argv for engine_plan in plans]),
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    for engine_plan, parsed in zip(plans, answer["parsed"], strict=True):
        assert parsed["model_tag"] == engine_plan.argv[1]
        assert parsed["uds"] == "/run/pedcxr/engine.sock"
        assert parsed["limit_mm_per_prompt"] == {"image": 1}
        assert parsed["max_num_seqs"] == engine_plan.max_num_seqs
        assert parsed["override_generation_config"]["temperature"] == 0
        assert parsed["enforce_eager"] is (engine_plan.device.kind == "cpu")
        assert parsed["trust_request_mm_kwargs"] is False
    listed = set(vllm_flags._REASONS)
    assert listed <= set(answer["flags"])
    refused = {flag for flag in answer["flags"] if flag.startswith("--") and vllm_flags.forbidden_reason([flag])}
    assert {"--" + flag.removeprefix("--").removeprefix("no-") for flag in refused} <= listed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        checkpoints = inspect_models(Path(name))
        for case, model, key in CASES:
            (GOLDEN / f"plan-{case}.txt").write_text(plan.render(make_plan(checkpoints[model], key)) + "\n")
