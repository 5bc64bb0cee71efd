"""What schemathesis cannot know of the relay: a request without its token is refused in the answer, not by a status."""

import os

import schemathesis


@schemathesis.check
def refused_in_the_answer(ctx, response, case):
    operation = case.operation.definition.raw
    if response.status_code != 200 or not any("relayToken" in scheme for scheme in operation.get("security", [])):
        return
    sent = response.request.headers.get("Authorization") or ""
    sent = sent.decode("latin-1") if isinstance(sent, bytes) else sent
    if sent.split() == ["Bearer", os.environ["RELAY_TOKEN"]]:
        return
    codes = [error["code"] for error in response.json().get("errors", [])]
    assert codes == ["authorization error"], f"let in without its token: {codes}"
