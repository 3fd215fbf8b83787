import pytest

import configs
from agents.router import core
from configs import Settings
from protocol import Code, LabError, MCPMessage, TrainRequest
from protocol.job import Route
from protocol.voice import DomainMatch, TextRoute


@pytest.fixture(scope="module")
def lab() -> configs.Configs:
    return configs.load(Settings.read(default_tier="starter"))


@pytest.fixture(scope="module")
def tiered() -> configs.Configs:
    return configs.load(Settings.read(default_tier=""))


def request(domain: str = "sleep", **more: object) -> TrainRequest:
    return TrainRequest.model_validate({"domain": domain, "dataset": "/data/x.jsonl", **more})


def unclear(text: str) -> TextRoute:
    near = [DomainMatch(domain=name, confidence=0.1) for name in ("sleep", "fitness", "music")]
    return TextRoute(
        primary_domain=None, domain_confidence=0.1, domain_category=None, nearest=near, empathy_level=None, voice=None,
        routing_strategy="clarification_needed", question="What is it about: sleep, fitness or music?", processing_time_ms=1,
    )  # fmt: skip


def about_music(text: str) -> TextRoute:
    sure = {"primary_domain": "music", "domain_confidence": 0.7, "routing_strategy": "single_domain"}
    return unclear(text).model_copy(update=sure)


def route(request: TrainRequest, lab: configs.Configs, understand: core.Understand = unclear) -> Route:
    return core.route(request, lab, understand)


def test_a_route_holds_what_configs_say_of_the_domain(lab):
    found = route(request(), lab)
    assert (found.domain, found.category, found.voice, found.empathy) == ("sleep", "healthcare", "meditative", "very_high")
    assert (found.quality_floor, found.safety_critical) == (95, True)
    assert found.tier == "starter" and found.base.endswith("/models/starter")


def test_a_named_tier_comes_before_the_labs_and_that_before_the_domains(lab, tiered):
    assert route(request(tier="fast"), lab).tier == "fast"
    assert route(request(), lab).tier == "starter"
    assert route(request(), tiered).tier == "quality"
    assert route(request(), tiered).base == "Qwen/Qwen3-8B"


def test_a_named_base_comes_before_the_tiers(lab):
    assert route(request(base="Qwen/Qwen3-0.6B"), lab).base == "Qwen/Qwen3-0.6B"
    assert route(request(base="/models/own"), lab).base == "/models/own"


@pytest.mark.parametrize(
    ("wrong", "first"),
    [("slep", "sleep"), ("Time Management", "time_management"), ("general-health", "general_health"), ("health", "women_health")],
)
def test_an_unknown_domain_is_refused_with_the_nearest_names(lab, wrong, first):
    with pytest.raises(LabError) as caught:
        route(request(wrong), lab)
    error = caught.value
    assert (error.code, error.data["field"]) == (Code.UNKNOWN_DOMAIN, "domain")
    assert first in error.data["nearest"] and first in str(error) and wrong in error.message


def test_an_unknown_domain_like_no_other_says_how_to_add_one(lab):
    with pytest.raises(LabError, match="custom:") as caught:
        route(request("zzzzqqq"), lab)
    assert caught.value.data["nearest"] == []


def test_an_unknown_tier_is_refused_with_the_known_ones(lab):
    with pytest.raises(LabError, match="starter, lightning, fast, balanced, quality") as caught:
        route(request(tier="huge"), lab)
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
        route(request(**more), lab)
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


def test_a_text_finds_the_domain_where_none_is_named(lab):
    assert route(TrainRequest(text="chords", dataset="/x"), lab, about_music).domain == "music"


def test_a_named_domain_comes_before_the_text(lab):
    assert route(request("sleep", text="chords"), lab, about_music).domain == "sleep"


def test_an_unclear_text_is_refused_with_three_domains_and_the_question(lab):
    with pytest.raises(LabError) as caught:
        route(TrainRequest(text="hm", dataset="/x"), lab)
    error = caught.value
    assert (error.code, error.data["field"]) == (Code.UNKNOWN_DOMAIN, "text")
    assert error.data["nearest"] == ["sleep", "fitness", "music"] and error.data["confidence"] == [0.1, 0.1, 0.1]
    assert "What is it about: sleep, fitness or music?" in str(error)


def test_a_domain_that_is_likelier_wrong_than_right_starts_no_training(lab):
    def rather_music(text: str) -> TextRoute:
        return about_music(text).model_copy(update={"domain_confidence": 0.45, "question": None})

    with pytest.raises(LabError, match="What is it about: sleep, fitness or music") as caught:
        route(TrainRequest(text="hm", dataset="/x"), lab, rather_music)
    assert caught.value.code is Code.UNKNOWN_DOMAIN


def test_neither_domain_nor_text_is_refused_with_advice(lab):
    with pytest.raises(LabError, match="`text`") as caught:
        route(TrainRequest(dataset="/x"), lab)
    assert (caught.value.code, caught.value.data["field"]) == (Code.INVALID_PARAMS, "domain")
