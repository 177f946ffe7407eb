"""Clients of others against the gateway, over HTTP and over TLS: what is sent comes back as it was, whatever it is called and however large."""

import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.support.s3 import refused
from tests.support.s3_clients import KEYS_THAT_LEAD_OUT, ODD_KEYS, Program, content, contents, python_of_clients, tree
from tests.support.s3_served import Served, served_gateway

MIB = 1 << 20


@pytest.fixture(scope="module", params=["http", "https"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway for all tests of the module; each has a bucket of its own."""
    with served_gateway(tmp_path_factory.mktemp("served"), request.param) as made:
        yield made


@pytest.fixture
def run(served: Served, tmp_path: Path) -> Program:
    return Program(served, tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tree(tmp_path / "source")


def fetch(served: Served, address: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """What an address gives to somebody who has nothing but the address."""
    parts = urlsplit(address.strip())
    link = (
        HTTPSConnection(parts.netloc, timeout=60, context=ssl.create_default_context(cafile=str(served.ca_file)))
        if served.ca_file
        else (HTTPConnection(parts.netloc, timeout=60))
    )
    with closing(link):
        # No header more than HTTP asks for: one kind of signature covers the type of the content.
        link.request(method, urlunsplit(("", "", parts.path, parts.query, "")), body=body)
        answer = link.getresponse()
        found = answer.read()
    assert answer.status == 200, (address, answer.status, found)
    return found


def listed(served: Served, bucket: str) -> set[str]:
    """The keys that are there, as another client sees them."""
    pages = served.boto().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {each["Key"] for page in pages for each in page.get("Contents", ())}


def test_aws_cli(run: Program, source: Path, tmp_path: Path) -> None:
    run("aws", "s3", "mb", "s3://with-aws")
    run("aws", "s3", "sync", source, "s3://with-aws/tree", "--no-progress")
    assert run("aws", "s3", "sync", source, "s3://with-aws/tree", "--no-progress") == ""
    run("aws", "s3", "sync", "s3://with-aws/tree", tmp_path / "back", "--no-progress")
    assert contents(tmp_path / "back") == contents(source)
    assert "large" in run("aws", "s3", "ls", "--recursive", "--summarize", "s3://with-aws/tree/")
    run("aws", "s3", "cp", "-", "s3://with-aws/streamed", given=content("stream", 9 * MIB))
    run("aws", "s3", "mv", "s3://with-aws/streamed", "s3://with-aws/a dir//moved", "--no-progress")
    run("aws", "s3", "cp", "s3://with-aws/a dir//moved", tmp_path / "moved", "--no-progress")
    assert (tmp_path / "moved").read_bytes() == content("stream", 9 * MIB)
    assert fetch(run.served, run("aws", "s3", "presign", "s3://with-aws/tree/100%")) == content("100%", 100)
    assert "NoSuchBucket" in run("aws", "s3", "ls", "s3://there-is-none", succeeds=False)
    (source / "one").unlink()
    run("aws", "s3", "sync", source, "s3://with-aws/tree", "--delete", "--no-progress")
    assert "tree/one" not in listed(run.served, "with-aws")
    run("aws", "s3", "rb", "--force", "s3://with-aws")


def test_aws_cli_by_operation(run: Program, tmp_path: Path) -> None:
    def api(operation: str, *more: str | Path) -> dict[str, object]:
        found = run("aws", "s3api", operation, "--bucket", "with-s3api", *more)
        return dict(json.loads(found)) if found.strip() else {}

    (tmp_path / "body").write_bytes(content("body", 1000))
    api("create-bucket")
    api("put-bucket-versioning", "--versioning-configuration", "Status=Enabled")
    first = api(
        "put-object", "--key", "k", "--body", tmp_path / "body", "--metadata", "colour=red", "--tagging", "a=1", "--checksum-algorithm", "SHA256"
    )
    api("put-object", "--key", "k", "--content-type", "text/plain", "--storage-class", "STANDARD_IA", "--acl", "public-read")
    found = api("get-object", "--key", "k", "--version-id", str(first["VersionId"]), "--range", "bytes=10-19", tmp_path / "part")
    assert (found["ContentRange"], found["Metadata"]) == ("bytes 10-19/1000", {"colour": "red"})
    assert (tmp_path / "part").read_bytes() == content("body", 1000)[10:20]
    assert api("head-object", "--key", "k")["ContentType"] == "text/plain"
    versions = api("list-object-versions")["Versions"]
    assert isinstance(versions, list)
    assert len(versions) == 2
    api("put-object-tagging", "--key", "k", "--tagging", "TagSet=[{Key=b,Value=2}]")
    assert api("get-object-tagging", "--key", "k")["TagSet"] == [{"Key": "b", "Value": "2"}]
    wanted = ",".join(f"{{Key=k,VersionId={each['VersionId']}}}" for each in versions)
    api("delete-objects", "--delete", f"Objects=[{wanted}],Quiet=true")
    api("delete-bucket")


def test_s3cmd(run: Program, source: Path, tmp_path: Path) -> None:
    trust = ("--ssl", "--ca-certs", run.served.ca_file) if run.served.ca_file else ("--no-ssl",)
    config = tmp_path / "s3cmd.cfg"
    config.write_text(f"[default]\nsignurl_use_https = {run.served.ca_file is not None}\n")
    base = (
        "s3cmd", "--config", config, "--host", run.served.host, "--host-bucket", run.served.host, "--access_key", run.served.key_id,
        "--secret_key", run.served.secret, "--no-progress", "--multipart-chunk-size-mb", "5", "--max-retries", "0", *trust,
    )  # fmt: skip
    run(*base, "mb", "s3://with-s3cmd")
    run(*base, "sync", f"{source}/", "s3://with-s3cmd/tree/")
    run(*base, "sync", "s3://with-s3cmd/tree/", f"{tmp_path}/back/")
    assert contents(tmp_path / "back") == contents(source)
    assert "s3://with-s3cmd/tree/100%" in run(*base, "ls", "--recursive", "s3://with-s3cmd")
    assert "with-s3cmd" in run(*base, "info", "s3://with-s3cmd")
    assert "MD5 sum" in run(*base, "info", "s3://with-s3cmd/tree/a b")
    run(*base, "cp", "s3://with-s3cmd/tree/large", "s3://with-s3cmd/copied")
    run(*base, "setacl", "--acl-public", "s3://with-s3cmd/copied")
    assert fetch(run.served, f"{run.served.url}/with-s3cmd/copied") == content("large", 11 * MIB + 3)
    run(*base, "modify", "--add-header", "x-amz-meta-colour:red", "s3://with-s3cmd/tree/one")
    assert run.served.boto().head_object(Bucket="with-s3cmd", Key="tree/one")["Metadata"]["colour"] == "red"
    assert fetch(run.served, run(*base, "signurl", "s3://with-s3cmd/tree/a b", "+600")) == content("a b", 100)
    assert run(*base, "du", "s3://with-s3cmd").split()[0].isdigit()
    run(*base, "del", "--recursive", "--force", "s3://with-s3cmd")
    run(*base, "rb", "s3://with-s3cmd")


def test_rclone(run: Program, source: Path, tmp_path: Path) -> None:
    sizes = ("--s3-chunk-size", "5Mi", "--s3-upload-cutoff", "5Mi")
    run("rclone", "mkdir", "s:with-rclone")
    run("rclone", "sync", source, "s:with-rclone/tree", *sizes)
    run("rclone", "check", source, "s:with-rclone/tree")
    run("rclone", "check", "--download", source, "s:with-rclone/tree")
    run("rclone", "sync", "s:with-rclone/tree", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    (source / "one").write_bytes(b"2")
    (source / "empty").unlink()
    run("rclone", "sync", source, "s:with-rclone/tree", *sizes)
    run("rclone", "check", source, "s:with-rclone/tree")
    run("rclone", "rcat", "s:with-rclone/streamed", *sizes, given=content("stream", 12 * MIB))
    run("rclone", "moveto", "s:with-rclone/streamed", "s:with-rclone/a/b", "--s3-copy-cutoff", "6Mi", *sizes)
    assert run.served.boto().get_object(Bucket="with-rclone", Key="a/b")["Body"].read() == content("stream", 12 * MIB)
    assert fetch(run.served, run("rclone", "link", "s:with-rclone/tree/100%")) == content("100%", 100)
    assert "large" in run("rclone", "lsf", "--recursive", "s:with-rclone")
    run("rclone", "delete", "s:with-rclone/a")
    run("rclone", "purge", "s:with-rclone")


def test_restic(run: Program, source: Path, tmp_path: Path) -> None:
    trust = ("--cacert", run.served.ca_file) if run.served.ca_file else ()
    restic = ("restic", "-r", f"s3:{run.served.url}/with-restic/repo", "--no-cache", *trust)
    run(*restic, "init")
    run(*restic, "backup", source)
    before = contents(source)
    (source / "large").write_bytes(content("changed", 7 * MIB))
    (source / "a b").unlink()
    run(*restic, "backup", source)
    assert len(json.loads(run(*restic, "snapshots", "--json"))) == 2
    first = json.loads(run(*restic, "snapshots", "--json"))[0]["id"]
    run(*restic, "restore", first, "--target", tmp_path / "first")
    assert contents(tmp_path / "first" / str(source).lstrip("/")) == before
    run(*restic, "forget", "--keep-last", "1", "--prune")
    run(*restic, "check", "--read-data")
    run(*restic, "restore", "latest", "--target", tmp_path / "latest")
    assert contents(tmp_path / "latest" / str(source).lstrip("/")) == contents(source)


def test_s5cmd(run: Program, source: Path, tmp_path: Path) -> None:
    run("s5cmd", "mb", "s3://with-s5cmd")
    run("s5cmd", "cp", "--part-size", "5", f"{source}/", "s3://with-s5cmd/tree/")
    run("s5cmd", "cp", "s3://with-s5cmd/tree/*", f"{tmp_path}/back/")
    assert contents(tmp_path / "back") == contents(source)
    (source / "one").write_bytes(b"22")
    assert "one" in run("s5cmd", "sync", f"{source}/", "s3://with-s5cmd/tree/")
    assert run("s5cmd", "cat", "s3://with-s5cmd/tree/one") == "22"
    run("s5cmd", "mv", "s3://with-s5cmd/tree/large", "s3://with-s5cmd/moved")
    assert "moved" in run("s5cmd", "ls", "s3://with-s5cmd")
    assert fetch(run.served, run("s5cmd", "presign", "s3://with-s5cmd/tree/a b")) == content("a b", 100)
    run("s5cmd", "rm", "s3://with-s5cmd/*")
    run("s5cmd", "rb", "s3://with-s5cmd")


def test_minio_for_python(run: Program) -> None:
    program = Path(__file__).parents[1] / "support" / "minio_program.py"
    known = json.dumps({"host": run.served.host, "secure": run.served.ca_file is not None, "ca": str(run.served.ca_file or ""), "keys": ODD_KEYS})
    assert run(python_of_clients(), program, given=known.encode()).strip() == "done"


def test_boto3_with_odd_keys_and_presigned_addresses(served: Served) -> None:
    s3 = served.boto()
    s3.create_bucket(Bucket="with-boto3")
    for key in KEYS_THAT_LEAD_OUT:
        refused(lambda key=key: s3.put_object(Bucket="with-boto3", Key=key, Body=b"x"), "InvalidURI")
    for key in ODD_KEYS:
        s3.put_object(Bucket="with-boto3", Key=key, Body=content(key, 50))
    for key in ODD_KEYS:
        assert s3.get_object(Bucket="with-boto3", Key=key)["Body"].read() == content(key, 50), key
        s3.copy_object(Bucket="with-boto3", Key="copied", CopySource={"Bucket": "with-boto3", "Key": key})
        assert s3.get_object(Bucket="with-boto3", Key="copied")["Body"].read() == content(key, 50), key
        for version in ("s3v4", "s3"):
            about = {"Bucket": "with-boto3", "Key": key}
            boto = served.boto(signature_version=version)
            assert fetch(served, boto.generate_presigned_url("get_object", about)) == content(key, 50), (version, key)
            fetch(served, boto.generate_presigned_url("put_object", about), "PUT", content(key, 50))
    s3.delete_object(Bucket="with-boto3", Key="copied")
    assert listed(served, "with-boto3") == set(ODD_KEYS)
    gone = s3.delete_objects(Bucket="with-boto3", Delete={"Objects": [{"Key": key} for key in ODD_KEYS if "\n" not in key]})
    assert "Errors" not in gone
    assert listed(served, "with-boto3") == {key for key in ODD_KEYS if "\n" in key}
