import pytest

import configs
from agents.router import core
from configs import Settings
from protocol import Code, LabError, MCPMessage, TrainRequest


@pytest.fixture(scope="module")
def lab() -> configs.Configs:
    return configs.load(Settings.read(default_tier="starter"))


@pytest.fixture(scope="module")
def tiered() -> configs.Configs:
    return configs.load(Settings.read(default_tier=""))


def request(domain: str = "sleep", **more: object) -> TrainRequest:
    return TrainRequest.model_validate({"domain": domain, "dataset": "/data/x.jsonl", **more})


def test_a_route_holds_what_configs_say_of_the_domain(lab):
    route = core.route(request(), lab)
    assert (route.domain, route.category, route.voice, route.empathy) == ("sleep", "healthcare", "meditative", "very_high")
    assert (route.quality_floor, route.safety_critical) == (95, True)
    assert route.tier == "starter" and route.base.endswith("/models/starter")


def test_a_named_tier_comes_before_the_labs_and_that_before_the_domains(lab, tiered):
    assert core.route(request(tier="fast"), lab).tier == "fast"
    assert core.route(request(), lab).tier == "starter"
    assert core.route(request(), tiered).tier == "quality"
    assert core.route(request(), tiered).base == "Qwen/Qwen3-8B"


def test_a_named_base_comes_before_the_tiers(lab):
    assert core.route(request(base="Qwen/Qwen3-0.6B"), lab).base == "Qwen/Qwen3-0.6B"
    assert core.route(request(base="/models/own"), lab).base == "/models/own"


@pytest.mark.parametrize(
    ("wrong", "first"),
    [("slep", "sleep"), ("Time Management", "time_management"), ("general-health", "general_health"), ("health", "women_health")],
)
def test_an_unknown_domain_is_refused_with_the_nearest_names(lab, wrong, first):
    with pytest.raises(LabError) as caught:
        core.route(request(wrong), lab)
    error = caught.value
    assert (error.code, error.data["field"]) == (Code.UNKNOWN_DOMAIN, "domain")
    assert first in error.data["nearest"] and first in str(error) and wrong in error.message


def test_an_unknown_domain_like_no_other_says_how_to_add_one(lab):
    with pytest.raises(LabError, match="custom:") as caught:
        core.route(request("zzzzqqq"), lab)
    assert caught.value.data["nearest"] == []


def test_an_unknown_tier_is_refused_with_the_known_ones(lab):
    with pytest.raises(LabError, match="starter, lightning, fast, balanced, quality") as caught:
        core.route(request(tier="huge"), lab)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "tier")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"parameters": {"lora_rr": 8}}, "parameters.lora_rr"),
        ({"parameters": {"lora_r": "eight"}}, "parameters.lora_r"),
        ({"quantisation": "Q4"}, "quantisation"),
    ],
)
def test_wrong_parameters_are_refused_by_their_name(lab, more, field):
    with pytest.raises(LabError) as caught:
        core.route(request(**more), lab)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, field)


def test_the_clients_id_is_the_jobs(lab):
    assert core.job_id(MCPMessage(id="night-1", type="train.submit")) == "night-1"
    made = MCPMessage(type="train.submit", generated_id=True)
    assert core.job_id(made) == made.id


@pytest.mark.parametrize("wrong", ["a/b", "a b", "#", "../x", "a..b", "x" * 65, "-x", ".hidden"])
def test_an_id_that_cannot_be_a_folder_or_topic_is_refused(wrong):
    with pytest.raises(LabError) as caught:
        core.job_id(MCPMessage(id=wrong, type="train.submit"))
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "id")


def test_the_digest_depends_on_meaning_not_on_order_or_defaults():
    one = TrainRequest(domain="sleep", dataset="/x", parameters={"lora_r": 8, "seed": 1})
    same = TrainRequest(dataset="/x", domain="sleep", priority=1, parameters={"seed": 1, "lora_r": 8})
    assert core.digest(one) == core.digest(same)
    assert core.digest(one) != core.digest(one.model_copy(update={"priority": 2}))
    assert len(core.digest(one)) == 64
