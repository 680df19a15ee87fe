"""Searching for a plan: what is tried, in which order, what is left out, and what is shown."""

import dataclasses
import pathlib
import xml.etree.ElementTree

import jax
import pytest

from wanjax import config as config_lib
from wanjax import plan_search, topology
from wanjax.compiled_memory import CompileError
from wanjax.models.dit_config import REMAT
from wanjax.plan import PlanError, Settings, plan
from wanjax.plan_chart import chart
from wanjax.plan_search import Search, choices, meshes, search, short
from wanjax.plan_table import search_table

TINY = pathlib.Path(__file__).parents[1] / "configs/light_scenes_tiny.py"
SMALL = {"model.width": 32, "model.layers": 2, "model.ffn": 64, "data.batch": 8, "data.frames": 9, "data.height": 32,
         "data.width": 32, "optimizer.name": "adamw"}  # fmt: skip
CPU = topology.parse("cpu:8")
TRAIN = Settings("train")


@pytest.fixture(scope="module")
def experiment():
    return config_lib.load(TINY, SMALL)


def test_every_mesh_is_thought_of_once():
    found = list(meshes(8))
    assert len(found) == len({tuple(sizes.values()) for sizes in found}) == 20  # 2³ over four axes
    assert {"data": 2, "fsdp": 2, "seq": 2, "tensor": 1} in found


def test_what_can_be_chosen_goes_with_the_config(experiment):
    found = choices(experiment, CPU, TRAIN, jax.devices())
    named = {short(choice.overrides) for choice in found}
    assert "fsdp 8, remat full" in named and "fsdp 4, seq 2, remat none" in named
    assert any("seq 4" in name for name in named)  # two heads, in rings
    heads = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, sequence="heads"))
    assert not any("seq 4" in short(choice.overrides) for choice in choices(heads, CPU, TRAIN, jax.devices()))
    assert len(found) == len(REMAT) * len({name.split(", remat")[0] for name in named})
    sampling = choices(experiment, CPU, Settings("sample", holding="blocks"), jax.devices())
    assert {choice.settings.holding for choice in sampling} == {"blocks"}  # as asked for
    assert {choice.settings.passes for choice in sampling} == {"batched", "two"}
    with pytest.raises(PlanError, match="nothing is chosen for --program decode; expected one of train, sample"):
        choices(experiment, CPU, Settings("decode"), jax.devices())
    for choice in found:
        assert choice.experiment.model.remat == choice.overrides["config.model.remat"]
        assert choice.experiment.model.chunk_tokens == choice.overrides["config.model.chunk_tokens"] == 0  # 12 tokens
        assert choice.experiment.optimizer.state_memory == choice.overrides[plan_search.STATE] == "device"  # of a CPU
    # three heads of a width of 30 cannot be split over four or eight devices, nor three clips over two
    alone = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch=3),
                                model=dataclasses.replace(heads.model, width=30, heads=3))  # fmt: skip
    with pytest.raises(PlanError, match="no mesh of 8 devices goes with this config: config.data.batch = 3"):
        choices(alone, CPU, TRAIN, jax.devices())


def test_the_most_tokens_at_a_time_that_fit_by_formula_are_chosen(monkeypatch, experiment):
    """Twelve tokens, four or two of them at a time; policies that keep what chunks compute anew take all at once."""
    monkeypatch.setattr(plan_search, "CHUNKS", (0, 4, 2))
    monkeypatch.setattr(plan_search.plan_memory, "training", lambda chosen, mesh, *given, **named: (
        chosen.model.chunk_tokens or 12) * 10**6)  # fmt: skip

    def chosen(limit):
        monkeypatch.setattr(topology.Topology, "hbm_bytes", lambda machine: limit)
        found = choices(experiment, CPU, TRAIN, jax.devices())
        return {choice.experiment.model.remat: choice for choice in found if choice.overrides["config.mesh.seq"] == 1}

    assert {each.experiment.model.chunk_tokens for each in chosen(10**9).values()} == {0}
    some = chosen(5 * 10**6)
    sizes = {remat: each.experiment.model.chunk_tokens for remat, each in some.items()}
    assert sizes == {"none": 0, "dots": 0, "full": 4, "attention": 4, "offload": 4}
    smaller = some["full"].smaller
    assert (smaller.experiment.model.chunk_tokens, smaller.smaller) == (2, None)
    assert smaller.overrides["config.model.chunk_tokens"] == 2 and some["none"].smaller is None
    least = chosen(10**6)["offload"]
    assert (least.experiment.model.chunk_tokens, least.memory) == (2, 2 * 10**6)  # too large all the same


def test_state_goes_to_the_hosts_where_no_chunk_of_tokens_fits_beside_it(monkeypatch, experiment):
    """State of 5 MB, of which 3 can go; 12 tokens of 1 MB, or 4 of them at a time where a policy has chunks."""
    monkeypatch.setattr(plan_search, "CHUNKS", (0, 4))
    monkeypatch.setattr(plan_search, "_memories", lambda *given: ("device", "host"))
    monkeypatch.setattr(plan_search.plan_memory, "training", lambda chosen, mesh, *given, copies, **named: 10**6 * (
        (chosen.model.chunk_tokens or 12) + (5 if copies.host == 0 else 2)))  # fmt: skip

    def chains(limit):
        """By policy, what is chosen and what follows where a compiler says that it does not fit."""
        monkeypatch.setattr(topology.Topology, "hbm_bytes", lambda machine: limit * 10**6)
        out = {}
        for choice in choices(experiment, CPU, TRAIN, jax.devices()):
            link, chain = choice, []
            while link:
                assert link.experiment.optimizer.state_memory == link.overrides[plan_search.STATE]
                chain.append((link.overrides[plan_search.STATE], link.overrides["config.model.chunk_tokens"]))
                link = link.smaller
            if choice.overrides["config.mesh.seq"] == 1:
                out[choice.experiment.model.remat] = chain
        return out

    assert chains(17)["full"] == [("device", 0), ("device", 4), ("host", 0), ("host", 4)]
    assert chains(17)["dots"] == [("device", 0), ("host", 0)]
    assert chains(9)["full"] == [("device", 4), ("host", 4)]
    assert chains(8)["full"] == [("host", 4)] and chains(14)["dots"] == [("host", 0)]
    assert chains(1)["full"] == [("host", 4)]  # too large all the same


def test_only_tpus_have_hosts_to_plan_with(experiment):
    memories = {name: plan_search._memories(experiment, topology.parse(name)) for name in ("v5p:4x4x4", "h100:1x8",
                                                                                          "cpu:8")}  # fmt: skip
    assert memories == {"v5p:4x4x4": ("device", "host"), "h100:1x8": ("device",), "cpu:8": ("device",)}
    lora = dataclasses.replace(experiment.lora, rank=4, targets=("head/projection/kernel",))
    outside = dataclasses.replace(experiment, lora=lora)  # nothing of the stack is trained
    assert plan_search._memories(outside, topology.parse("v5p:4x4x4")) == ("device",)


def test_where_a_compiler_says_that_they_do_not_fit_fewer_tokens_follow(monkeypatch, experiment):
    small = plan_search.Choice(experiment, TRAIN, {"config.model.chunk_tokens": 2}, 1.0, 5, 5)
    large = plan_search.Choice(experiment, TRAIN, {"config.model.chunk_tokens": 4}, 1.0, 5, 5, smaller=small)
    other = plan_search.Choice(experiment, Settings("sample"), {"config.mesh.fsdp": 2}, 2.0, 5, 5)
    monkeypatch.setattr(plan_search, "choices", lambda *given: [large, other])
    found = tried(experiment, [made(8.0, fits=False), made(8.0, fits=False), made(24.0)])
    assert [each["overrides"] for each in found.plans] == [other.overrides, large.overrides, small.overrides]
    assert tried(experiment, [made(8.0)]).plans[0]["overrides"] == large.overrides  # which fits: no other is needed
    assert tried(experiment, [made(8.0, fits=False)], tries=1).not_tried == 2


@pytest.fixture(scope="module")
def tiny(experiment):
    """Two plans of the tiny config, made by the planner itself."""
    return search(experiment, CPU, Settings("sample"), jax.devices(), lambda chosen, own: plan(chosen, CPU, own),
                  tries=2, refusals=(CompileError,))  # fmt: skip


def test_plans_of_simulated_devices_go_by_what_they_send(tiny, experiment):
    assert len(tiny.plans) == 2 and tiny.not_tried > 0 and tiny.refused == ()
    sent = [each["collective_bytes"] for each in tiny.plans]
    assert sent == sorted(sent) and all(each["fits"] for each in tiny.plans)
    known = choices(experiment, CPU, Settings("sample"), jax.devices())
    bounds = {short(choice.overrides): choice for choice in known}
    for each in tiny.plans:
        choice = bounds[short(each["overrides"])]
        assert choice.memory < each["peak_bytes_per_device"]
        assert choice.settings.passes == each["overrides"]["--passes"]
        assert each["mesh"] == {axis: each["overrides"][f"config.mesh.{axis}"] for axis in each["mesh"]}


def made(seconds, fits=True, memory=10, expected=None):
    estimate = {"step_seconds": seconds, "matmul_seconds": seconds, "attention_seconds": 0.0, "memory_seconds": 0.1,
                "network_seconds": 2 * seconds, "mfu": 0.5, "expected": expected and {"step_seconds": expected}}
    return {"fits": fits, "estimate": estimate, "clips": 8, "collective_bytes": 10**9, "host_bytes": 0,
            "peak_bytes_per_device": memory * 10**9, "hbm_bytes_per_device": 16 * 10**9}  # fmt: skip


@pytest.fixture
def five(monkeypatch, experiment):
    """Choices with bounds of 1 to 5 seconds, of which the third is too large."""
    bounds = [(1.0, 0), (2.0, 0), (3.0, 10**15), (4.0, 0), (5.0, 0)]
    known = [plan_search.Choice(experiment, TRAIN, {"config.mesh.fsdp": n + 2}, seconds, memory, 9 - n)
             for n, (seconds, memory) in enumerate(bounds)]  # fmt: skip
    monkeypatch.setattr(plan_search, "choices", lambda *given: known)


def tried(experiment, answers, tries=9):
    left = iter(answers)

    def make(chosen, own):
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return search(experiment, CPU, TRAIN, [], make, tries=tries, refusals=(CompileError,))


def test_what_cannot_be_faster_is_not_compiled(five, experiment):
    """A plan of 8 clips in 24 s takes 3 s a clip: the two choices of 4 and 5 s are not looked at."""
    found = tried(experiment, [made(40.0, fits=False), made(24.0)])
    assert [each["seconds_per_clip"] for each in found.plans] == [3.0, 5.0]  # what does not fit comes last
    assert (found.too_large, found.beaten, found.not_tried) == (1, 0, 2)
    limited = tried(experiment, [made(400.0)], tries=1)
    assert (len(limited.plans), limited.not_tried) == (1, 3)


def test_what_another_beats_in_everything_is_not_compiled(monkeypatch, experiment):
    """Time, memory, bytes: the first beats the second; the third is better in one; the fifth equals the fourth."""
    known = [plan_search.Choice(experiment, TRAIN, {"config.mesh.fsdp": n + 2}, *bounds)
             for n, bounds in enumerate([(1.0, 5, 5), (1.0, 6, 5), (2.0, 4, 9), (3.0, 9, 1), (3.0, 9, 1)])]  # fmt: skip
    monkeypatch.setattr(plan_search, "choices", lambda *given: known)
    found = tried(experiment, [made(80.0), made(80.0), made(80.0)])
    assert [each["overrides"]["config.mesh.fsdp"] for each in found.plans] == [2, 4, 5]
    assert (found.beaten, found.not_tried) == (2, 0)
    other = dataclasses.replace(known[1], settings=Settings("sample"))  # policies are not compared by formula
    monkeypatch.setattr(plan_search, "choices", lambda *given: [known[0], other])
    assert tried(experiment, [made(80.0), made(80.0)]).beaten == 0
    chunked = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, chunk_tokens=4))
    moved = plan_search._in(experiment, "host")
    # by one that takes as many tokens at a time, or more, and by one with its state at hand
    for first, second, beaten in ((experiment, chunked, 1), (chunked, experiment, 0), (experiment, moved, 1),
                                  (moved, moved, 1), (moved, experiment, 0)):  # fmt: skip
        pair = [dataclasses.replace(known[0], experiment=first), dataclasses.replace(known[1], experiment=second)]
        monkeypatch.setattr(plan_search, "choices", lambda *given, pair=pair: pair)
        assert tried(experiment, [made(80.0), made(80.0)]).beaten == beaten


def test_a_choice_that_is_refused_is_told_and_the_others_go_on(five, experiment):
    found = tried(experiment, [CompileError("no such kernel"), made(24.0)])
    assert found.refused == (({"config.mesh.fsdp": 2}, "no such kernel"),) and len(found.plans) == 1
    assert "refused: fsdp 2: no such kernel" in search_table(found)


def test_a_search_is_shown_as_a_table_and_as_a_picture(five, experiment):
    found = tried(experiment, [made(40.0, fits=False, memory=20), made(24.0, expected=32.0)])
    first, second = search_table(found).splitlines()[1:3]
    assert first.split() == ["1", "yes", "3", "50%", "4", "10.00", "16.0", "0.00", "1.00", "network", "fsdp", "3"]
    assert second.split()[:5] == ["2", "NO", "5", "50%", "–"]
    drawn = xml.etree.ElementTree.fromstring(chart(found, "train of a & b"))
    bars = [(bar.get("class"), float(bar.get("width"))) for bar in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert [kind for kind, _ in bars] == ["fits", "fits", "not", "not"]
    assert bars[0][1] / bars[2][1] == pytest.approx(3 / 5, rel=0.01) and bars[1][1] / bars[3][1] == pytest.approx(0.5)
    limits = [float(line.get("x1")) for line in drawn.iter("{http://www.w3.org/2000/svg}line")]
    assert len(limits) == 2 and limits[0] == limits[1]


def test_plans_without_an_estimate_are_shown_too():
    bare = {**made(1.0), "estimate": None, "collective_bytes": None, "overrides": {"--passes": "two"},
            "seconds_per_clip": None}  # fmt: skip
    found = Search((bare,), (), 0, 0, 0)
    words = search_table(found).splitlines()[1].split()
    assert words == ["1", "yes", "–", "–", "–", "10.00", "16.0", "0.00", "–", "–", "passes", "two"]
    assert "options of the first: --passes=two" in search_table(found)
    assert "none of these fits" in search_table(dataclasses.replace(found, plans=({**bare, "fits": False},)))
    assert "not known" in chart(found, "x")
