"""An agent program that plays the codeword of colours over HTTP, with the same messages as `environment.py`.

It reads the pictures from its standard input: a JSON list of `data:` URIs. It shows one in each turn, and then asks for
all colours. It imports little, because a training starts it thousands of times.
"""

import http.client
import json
import os
import sys
from urllib.parse import urlsplit


def main() -> None:
    """Play one rollout."""
    pictures: list[str] = json.load(sys.stdin)
    address = urlsplit(os.environ["OPENAI_BASE_URL"])
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(address.netloc, timeout=600)
    messages: list[dict[str, object]] = []
    shown = [[{"type": "image_url", "image_url": {"url": picture}}] for picture in pictures]
    for question, colors in [*((picture, 1) for picture in shown), ("All?", len(shown))]:
        messages.append({"role": "user", "content": question})
        request = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "max_tokens": colors}
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(request), headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            sys.exit(f"the policy answered {response.status}: {answer.decode()}")
        messages.append(json.loads(answer)["choices"][0]["message"])
        print(messages[-1]["content"])


if __name__ == "__main__":
    main()
