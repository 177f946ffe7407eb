"""The samples that users of the API start from, as they are written, against a portal that was started for the first time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.e2e.conftest import Running
from tests.support.servers import until

pytestmark = [pytest.mark.e2e, pytest.mark.vm]

CURL = """
set -euo pipefail
TOKEN=$(curl -sS --fail-with-body -X POST http://localhost:8000/api-token-auth/ \
  -H "Content-Type: application/json" \
  -d '{"username": "admin", "password": "password"}' | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])')
curl -sS --fail-with-body -X GET http://localhost:8000/api/v1/services/instances/ \
  -H "Authorization: Token $TOKEN"
echo
curl -sS --fail-with-body -X POST http://localhost:8000/api/v1/services/instances/ \
  -H "Authorization: Token $TOKEN" \
  -H "Content-Type: application/json" \
  -d '{
    "name": "test-instance",
    "flavor": "t3-large",
    "image": "ami-ubuntu2204",
    "vpc_id": "vpc-12345678"
  }'
"""
PYTHON = """
import requests

API_BASE = "http://localhost:8000/api/v1/services"
TOKEN = "your_api_token"
headers = {"Authorization": f"Token {TOKEN}"}

# List instances
response = requests.get(f"{API_BASE}/instances/", headers=headers)
instances = response.json()
print(f"Found {len(instances['results'])} instances")

# Create instance
instance_data = {
    "name": "web-server-01",
    "flavor": "t3-large",
    "image": "ami-ubuntu2204",
    "vpc_id": "vpc-12345678",
    "tags": {"env": "production"}
}
response = requests.post(
    f"{API_BASE}/instances/",
    json=instance_data,
    headers=headers
)
new_instance = response.json()
print(f"Created instance: {new_instance['instance_id']}")
"""


def test_the_curl_sample(real: Running) -> None:
    password = real.settings.admin_password.get_secret_value()
    script = CURL.replace("localhost:8000", f"localhost:{real.settings.portal_port}").replace(
        '"password": "password"', f'"password": {json.dumps(password)}'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    listed, made = (json.loads(line) for line in done.stdout.splitlines())
    assert set(listed) >= {"count", "next", "previous", "results"}
    assert (made["name"], made["flavor"], made["image"]) == ("test-instance", "t3-large", "ami-ubuntu2204")

    url, headers = f"{real.url}/api/v1/compute/instances/{made['instance_id']}", authorized(real)

    def settled() -> dict[str, object]:
        return requests.get(url, headers=headers, timeout=10).json()

    # Where the publisher cannot be reached, the instance says so; where it can, it boots.
    until(lambda: settled()["status"] in {"error", "running"}, within_s=300, what="the instance settles", every_s=0.5)
    found = settled()
    if found["status"] == "error":
        assert "cloud-images.ubuntu.com" in str(found["state_reason"])


def test_the_python_sample(real: Running, tmp_path: Path) -> None:
    token = authorized(real)["Authorization"].split()[1]
    script = tmp_path / "sample.py"
    script.write_text(PYTHON.replace("localhost:8000", f"localhost:{real.settings.portal_port}").replace("your_api_token", token))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Created instance: i-" in done.stdout


def authorized(portal: Running) -> dict[str, str]:
    """Headers with a token of the first administrator."""
    body = {"username": "admin", "password": portal.settings.admin_password.get_secret_value()}
    answer = requests.post(f"{portal.url}/api-token-auth/", json=body, timeout=10).json()
    return {"Authorization": f"Token {answer['token']}"}
