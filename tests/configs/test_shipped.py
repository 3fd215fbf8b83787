"""The files that come with the lab."""

from pathlib import Path

import yaml

import configs
from configs import GATES, Settings
from configs.source import SHIPPED

DOMAINS = """
healthcare: general_health mental_health nutrition fitness sleep stress_management preventive_care chronic_conditions
 medication_management emergency_care women_health senior_health
daily_life: parenting relationships personal_assistant communication home_management shopping planning transportation
 time_management decision_making conflict_resolution work_life_balance
business: entrepreneurship marketing sales customer_service project_management team_leadership financial_planning operations
 hr_management strategy consulting legal_business
education: academic_tutoring skill_development career_guidance exam_preparation language_learning research_assistance
 study_techniques educational_technology
creative: writing storytelling content_creation social_media design_thinking photography music art_appreciation
technology: programming ai_ml cybersecurity data_analysis tech_support software_development
specialized: legal financial scientific_research engineering
"""


def shipped() -> configs.Configs:
    return configs.load(Settings.read())


def test_all_62_domains_stand_in_their_categories():
    wanted = {
        name: line.split(":")[0]
        for line in DOMAINS.strip().replace("\n ", " ").splitlines()
        for name in line.split(":")[1].split()
    }
    assert {name: domain.category for name, domain in shipped().domains.items()} == wanted
    assert len(wanted) == 62


def test_domains_have_their_categorys_defaults_and_their_own_voice():
    domains = shipped().domains
    health, sleep, stress = domains["general_health"], domains["sleep"], domains["stress_management"]
    assert (health.tier, health.empathy, health.quality_floor, health.safety_critical) == ("quality", "very_high", 95, True)
    assert (health.voice, sleep.voice, stress.voice) == ("therapeutic", "meditative", "meditative")
    assert domains["time_management"].voice == "professional"  # casual is an alias
    assert (domains["writing"].tier, domains["legal"].quality_floor) == ("lightning", 92)


def test_the_starter_tier_is_this_machine_with_every_gate():
    lab = shipped()
    starter = lab.tiers["starter"]
    assert Path(starter.base).is_absolute() and starter.base.endswith("models/starter")
    assert (starter.parameters.max_steps, starter.parameters.max_epochs, starter.parameters.max_tokens) == (None, 3, 150_000)
    assert set(starter.gates) == set(GATES)
    assert (starter.gates["file_bytes"].level, starter.gates["file_bytes"].threshold) == ("fail", 8_300_000)
    assert {starter.gates["load_ms"].level, starter.gates["private_mb"].level} == {"warn"}
    assert lab.default_tier == "starter"


def test_the_other_tiers_use_the_proven_parameters():
    lab = shipped()
    assert [(t.name, t.base, t.usual_usd, t.cap_usd) for t in lab.tiers.values() if t.name != "starter"] == [
        ("lightning", "Qwen/Qwen3-0.6B", 2, 3), ("fast", "Qwen/Qwen3-1.7B", 3, 5), ("balanced", "Qwen/Qwen3-4B", 8, 12),
        ("quality", "Qwen/Qwen3-8B", 10, 15),
    ]  # fmt: skip
    quality = lab.tiers["quality"].parameters
    assert (quality.max_steps, quality.batch_size, quality.lora_r, quality.learning_rate) == (846, 6, 8, 5e-5)
    assert quality == lab.parameters


def test_budget_and_local_price():
    lab = shipped()
    assert lab.budget.caps() == {"day": 5_000_000, "week": 25_000_000, "month": 50_000_000}
    assert (lab.budget.alert_percents, lab.budget.optimise_percent, lab.budget.freeze_percent) == ((50, 80, 90, 95), 80, 95)
    assert lab.providers.local.price_micros_per_hour == 0
    assert [lab.providers.local.slots_for(cores) for cores in (1, 2, 5, 16)] == [1, 1, 2, 8]


def test_every_domain_speaks_in_one_of_the_six_voices_and_all_are_used():
    lab = shipped()
    assert [(name, voice.words_per_minute) for name, voice in lab.voices.voices.items()] == [
        ("meditative", 150), ("therapeutic", 160), ("professional", 180), ("educational", 170), ("creative", 175),
        ("technical", 165),
    ]  # fmt: skip
    assert {domain.voice for domain in lab.domains.values()} == set(lab.voices.voices)
    assert lab.voices.default == "professional" and lab.voices.emotion_above == 0.6


def test_a_voice_of_ones_own_serves_domains_and_emotions(tmp_path):
    content = yaml.safe_load((SHIPPED / "voices.yaml").read_text(encoding="utf-8"))
    content["voices"]["bedtime"] = {"words_per_minute": 120, "style": "drowsy", "pitch": 30, "pitch_range": 10, "volume": 60}
    content["emotions"]["loneliness"] = "bedtime"
    (tmp_path / "voices.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    mapping = (SHIPPED / "cloud-optimized-domain-mapping.yaml").read_text(encoding="utf-8")
    (tmp_path / "cloud-optimized-domain-mapping.yaml").write_text(
        mapping.replace("sleep: {voice: meditative}", "sleep: {voice: bedtime}"), encoding="utf-8"
    )
    lab = configs.load(Settings.read(configs=tmp_path))
    assert lab.domains["sleep"].voice == "bedtime" and lab.voices.find("bedtime").words_per_minute == 120
    assert lab.voices.of_emotion("loneliness", 0.61) == "bedtime" and lab.voices.of_emotion("loneliness", 0.6) is None
