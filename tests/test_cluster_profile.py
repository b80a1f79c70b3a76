"""A cluster profile: what it may say, and the sentence for everything that it may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.clusters.addresses import public_bind, shown
from orchestration.clusters.capacity import machines_for, machines_for_serving
from orchestration.clusters.profile import Profile, parse_profile, read_profile
from orchestration.clusters.versions import image_of, parse_versions, project_versions, require_versions
from orchestration.errors import RequestError

PROFILES = Path(__file__).parents[1] / "clusters" / "profiles"
SMALL: dict[str, Any] = {
    "name": "lab",
    "image": {"name": "registry.example.org/lab/t2i"},
    "workers": [{"name": "cpu", "cpus": 4, "memory_gib": 16, "max": 4}],
}
GPUS: dict[str, Any] = {"name": "gpu", "cpus": 8, "memory_gib": 32, "gpus": 2, "max": 2}
AWS: dict[str, Any] = {"region": "us-west-2", "ssh_from": ["203.0.113.0/24"]}


def changed(**changes: Any) -> dict[str, Any]:
    """The small profile with other fields; double underscores stand for dots."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SMALL))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return values


def group(**changes: Any) -> list[dict[str, Any]]:
    return [{**SMALL["workers"][0], **changes}]


@pytest.mark.parametrize("name", ["small", "gpu"])
def test_the_examples_are_profiles(name: str) -> None:
    profile, digest = read_profile(PROFILES / f"{name}.yaml")
    assert profile.name == f"t2i-{name}" and len(digest) == 12
    require_versions(profile, project_versions(), name)


def test_defaults_are_closed() -> None:
    profile = parse_profile(SMALL, "lab.yaml")
    assert profile.token.mode == "token"
    assert (profile.dashboard.host, profile.mlflow.host) == ("127.0.0.1", "127.0.0.1")
    assert profile.serving_group.name == "cpu"


WRONG: list[tuple[dict[str, Any], str]] = [
    # Tokens and addresses.
    (changed(token=False), "token.mode: false would leave the cluster to anyone who reaches it: write token"),
    (changed(token="off"), "token.mode: 'off' would leave the cluster to anyone"),
    (changed(token={"mode": "disabled"}), "token.mode: 'disabled' would leave the cluster to anyone"),
    (changed(dashboard__host="0.0.0.0"), "dashboard.host: '0.0.0.0' is every interface of the machine"),
    (changed(dashboard__host="::"), "dashboard.host: '::' is every interface"),
    (changed(mlflow__host="0.0.0.0"), "and whoever reaches it runs what they like: write 127.0.0.1"),
    (changed(mlflow__host="8.8.8.8"), "mlflow.host: '8.8.8.8' is a public address"),
    (changed(aws={**AWS, "ssh_from": ["0.0.0.0/0"]}), "aws.ssh_from.0: '0.0.0.0/0' is nearly every address"),
    (changed(aws={**AWS, "ssh_from": ["office"]}), "aws.ssh_from.0: 'office' is no network"),
    (
        changed(hosts={"head": "127.0.0.1", "workers": [{"address": "10.0.0.2", "group": "cpu"}]}),
        "hosts.head is 127.0.0.1, which the workers do not reach safely: name its private address",
    ),
    # Secrets.
    (
        changed(mlflow__url="https://ann:hunter2@mlflow.example.org"),
        "mlflow.url: 'https://ann:***@mlflow.example.org' has a password in it",
    ),
    (changed(storage__stages="s3://key:hunter2@bucket/stages"), "name the secret that holds it"),
    (changed(mlflow__url="https://mlflow.example.org?token=hunter2"), "has a password in it"),
    (changed(postgres={"host": "db", "password": "hunter2"}), "there is no field 'postgres.password'"),
    # Versions.
    (changed(versions={"ray": "2.40.0"}), "versions.ray is 2.40.0 and t2i here is for "),
    (changed(versions={"raay": "2"}), "versions.raay: t2i uses no package of that name"),
    (changed(image__tag="ray2.40.0-cpu"), "image.tag ray2.40.0-cpu says ray 2.40.0 and ray here is "),
    # Names.
    (changed(imagee={}), "there is no field 'imagee'; near it: image"),
    (changed(workers=group(cpu=3)), "there is no field 'workers.0.cpu'; near it: cpus"),
    (changed(tune={"concurent": 3}), "there is no field 'tune.concurent'; near it: concurrent"),
    (changed(zzz=1), "there is no field 'zzz'; there are: name, image"),
    ({"name": "lab"}, "image is missing: add it"),
    (changed(name="Lab_1"), "name: string should match pattern"),
    (changed(workers=[]), "workers: tuple should have at least 1 item"),
    (changed(workers=[*group(), *group()]), "workers: two groups are called 'cpu': rename one"),
    (changed(workers=group(name="head")), "workers: a group cannot be called 'head'"),
    (changed(serve={"group": "cpus"}), "serve.group: there is no group 'cpus'; near it: cpu"),
    (changed(slurm={"group": "fast"}), "slurm.group: there is no group 'fast'; there are: cpu"),
    (
        changed(hosts={"head": "10.0.0.1", "workers": [{"address": "10.0.0.2", "group": "x"}]}),
        "hosts.workers.0.group: there is no group 'x'",
    ),
    # Storage.
    (changed(storage__home="t2i"), "storage.home: 't2i' is no folder of its own"),
    (changed(storage__home="/tmp"), "write a whole path that every machine sees"),
    (changed(storage__stages="ftp://there"), "storage.stages: 'ftp://there' is none of s3://, gs://, file://"),
    (changed(storage__endpoint="https://storage.example.org"), "storage: endpoint is that of an S3-compatible storage"),
    # What does not fit.
    (changed(workers=group(min=3, max=2)), "group cpu: max is 2, below 3: raise it"),
    (changed(workers=group(processes=5)), "group cpu: 5 workers need a CPU each, and a machine has 4"),
    (changed(workers=[{**GPUS, "processes": 3}]), "group gpu: 3 workers need a GPU each, and a machine has 2"),
    (changed(workers=group(shm_gib=16)), "shm_gib is 16, all of the memory of 16 GiB"),
    (changed(workers=[GPUS]), "group gpu has GPUs, which the torch of an image without image.gpu cannot see"),
    (changed(workers=group(spot=True)), "group cpu is spot and kubernetes.spot_labels is empty"),
    (changed(train__workers=5), "train: 5 workers take a CPU each, and cpu hold 4: lower train.workers"),
    (
        changed(workers=[*group(), GPUS], image__gpu=True, train__workers=5),
        "train: 5 workers take a GPU each, and gpu hold 4",
    ),
    (
        changed(tune={"concurrent": 3, "workers": 2}),
        "tune: 6 workers in 3 trials at a time take a CPU each, and cpu hold 4: lower tune.workers or tune.concurrent",
    ),
    (changed(serve={"replicas": 4, "cpus": 4}), "serve: 4 replicas take 4 CPUs each and 0.1 CPUs beside them"),
    (changed(serve={"replicas": 5, "cpus": 4}), "lower serve.replicas or serve.cpus, or raise max"),
    (changed(serve={"replicas": 3, "max_replicas": 2}), "max_replicas is 2, below replicas, 3"),
    (changed(aws=AWS), "storage.nfs is missing: the machines that ray up starts on aws"),
    (changed(aws=AWS, storage__nfs="nas:/t2i"), "head has no instance.aws: name the machine type"),
    (
        changed(
            gcp={"project": "t2i-example", "region": "us-west1", "zone": "us-west1-a"},
            storage__nfs="nas:/t2i",
            head__instance={"gcp": "n2-standard-4"},
            image__gpu=True,
            workers=group(name="steady", gpus=1, processes=1, instance={"gcp": "g2-standard-8"}),
        ),
        "group steady has GPUs and gcp.gpu_image is missing: name an image with NVIDIA's container toolkit",
    ),
    (
        changed(hosts={"head": "10.0.0.1", "workers": [{"address": f"10.0.0.{n}", "group": "cpu"} for n in range(5)]}),
        "hosts.workers has 5 machines of group cpu, whose max is 4: raise max",
    ),
    # Words that a shell would read.
    (changed(train={"arguments": ["--data", "a;rm -rf /"]}), "train.arguments.1: string should match pattern"),
    (changed(train={"recipe": "$(id)"}), "train.recipe: string should match pattern"),
    (changed(slurm={"setup": ["module load\nid"]}), "slurm.setup.0: string should match pattern"),
    (changed(train={"backoff": -1}), "train.backoff: input should be greater than or equal to 0, not -1"),
]


@pytest.mark.parametrize(("values", "sentence"), WRONG, ids=[sentence[:40] for _, sentence in WRONG])
def test_one_sentence_says_what_is_wrong(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        require_versions(parse_profile(values, "lab.yaml"), project_versions(), "lab.yaml")
    assert sentence in str(refused.value)
    assert str(refused.value).startswith("profile lab.yaml: ")
    assert "\n" not in str(refused.value) and "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", "is no YAML"),
        ("- a", "a profile is a table of fields"),
        ("", "a profile is a table of fields"),
        ("\x00", "is no YAML"),
    ],
)
def test_a_file_that_is_no_profile(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=sentence):
        read_profile(file)
    with pytest.raises(RequestError, match="cannot be read"):
        read_profile(tmp_path / "none.yaml")


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda of: (
            st.lists(of)
            | st.dictionaries(st.sampled_from([*Profile.model_fields, "mode", "host", "max"]) | st.text(), of)
        ),
        max_leaves=12,
    )
)
def test_nothing_but_a_sentence_comes_of_anything(values: Any) -> None:
    try:
        parse_profile({**SMALL, **values} if isinstance(values, dict) else values, "lab.yaml")
    except RequestError as refused:
        assert "\n" not in str(refused).splitlines()[0]


def test_machines_for_a_job() -> None:
    values = changed(workers=[GPUS, {**GPUS, "name": "more", "gpus": 4, "max": 3}], image__gpu=True)
    profile = parse_profile({**values, "train": {"workers": 9}}, "lab.yaml")
    assert machines_for(profile, profile.train) == {"gpu": 2, "more": 2}
    assert machines_for(profile, profile.tune) == {"gpu": 1, "more": 0}


def test_machines_for_the_endpoint_leave_room_beside_replicas() -> None:
    profile = parse_profile(changed(serve={"replicas": 2, "cpus": 2}), "lab.yaml")
    assert machines_for_serving(profile) == 2  # two replicas fill one machine, and the tenth of a CPU needs another


@pytest.mark.parametrize(
    ("host", "is_public"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("10.1.2.3", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("[::]", True),
        ("*", True),
        ("", True),
        ("0.0.0", False),
        ("1.1.1.1", True),
    ],
)
def test_public_binds(host: str, is_public: bool) -> None:
    assert bool(public_bind(host)) == is_public


def test_a_url_is_shown_without_its_secret() -> None:
    assert shown("https://a:b@c/d?token=e") == "https://a:***@c/d"


def test_versions_come_from_the_project() -> None:
    versions = project_versions()
    assert versions.pinned and versions.python == "3.11"
    assert f"ray {versions['ray']}" in versions.line and versions["faiss_cpu"] == versions["faiss-cpu"]
    profile = parse_profile(SMALL, "lab.yaml")
    assert image_of(profile, versions) == f"registry.example.org/lab/t2i:{versions.tag}-cpu"


def test_without_a_repository_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = project_versions()
    monkeypatch.setattr("orchestration.clusters.versions.REPOSITORY", Path("nowhere"))
    installed = project_versions.__wrapped__()
    assert not installed.pinned and installed.python == pinned.python
    assert (installed["torch"], installed["ray"]) == (pinned["torch"], pinned["ray"])


def test_pins_that_the_project_does_not_allow() -> None:
    assert parse_versions("1", ">=3.12", ["ray>=2.6,<2.7"], "ray==2.6.1\n").python == "3.12"
    with pytest.raises(RequestError, match=r"pins ray 2\.9 and pyproject\.toml wants"):
        parse_versions("1", ">=3.12", ["ray>=2.6,<2.7"], "ray==2.9\n")
