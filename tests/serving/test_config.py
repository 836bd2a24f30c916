"""The Serve config is checked more strictly than Ray checks it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvcim.errors import ConfigError
from serving.config import CONFIG_FILE, DEPLOYMENTS, deployment_options, load_serve_config, parse_serve_config


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(yaml.safe_load(CONFIG_FILE.read_text()))


def test_shipped_config_is_valid_local_and_bounded() -> None:
    config = load_serve_config()
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.request_timeout_s > 0
    options = deployment_options(config)
    assert set(options) == set(DEPLOYMENTS)
    for name in DEPLOYMENTS:
        assert options[name]["max_ongoing_requests"] > 0
        assert options[name]["max_queued_requests"] > 0
        assert options[name]["backpressure_config"]["status_code"] == 429
        assert options[name]["health_check_period_s"] > 0
        assert "autoscaling_config" not in options[name]


@pytest.mark.parametrize(
    ("path", "key", "near"),
    [
        ((), "http_option", "http_options"),
        (("http_options",), "request_timeout", "request_timeout_s"),
        (("applications", 0), "import_paths", "import_path"),
        (("applications", 0, "args"), "max_batch", "max_batch_size"),
        (("applications", 0, "deployments", 1), "max_queued_request", "max_queued_requests"),
        (("applications", 0, "deployments", 1, "ray_actor_options"), "num_cpu", "num_cpus"),
        (("applications", 0, "deployments", 1, "backpressure_config"), "status", "status_code"),
        (("applications", 0, "deployments", 1, "autoscaling_config"), "min_replica", "min_replicas"),
    ],
)
def test_misspelt_key_is_named_with_the_right_one(
    content: dict[str, Any], path: tuple, key: str, near: str
) -> None:
    content["applications"][0]["deployments"][1]["autoscaling_config"] = {}
    del content["applications"][0]["deployments"][1]["num_replicas"]
    place = content
    for step in path:
        place = place[step]
    place[key] = 1
    with pytest.raises(ConfigError) as caught:
        parse_serve_config(content, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    assert key in message
    assert near in message.split("allowed:")[1]


def test_unknown_deployment_is_refused(content: dict[str, Any]) -> None:
    content["applications"][0]["deployments"][0]["name"] = "Ingres"
    with pytest.raises(ConfigError, match=r"'Ingres' \(did you mean 'Ingress'\?\)"):
        parse_serve_config(content, "my.yaml")


def test_value_out_of_range_names_the_field(content: dict[str, Any]) -> None:
    content["applications"][0]["deployments"][0]["max_ongoing_requests"] = 0
    with pytest.raises(ConfigError, match="max_ongoing_requests"):
        parse_serve_config(content, "my.yaml")


@pytest.mark.parametrize(
    "text", ["", "[1]", "applications: 3", "applications: [3]", "http_options: []", "a: [", "1: 2"]
)
def test_document_of_the_wrong_shape_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        load_serve_config(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_serve_config(tmp_path / "none.yaml")
