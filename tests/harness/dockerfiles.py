"""Dockerfiles as people write them, with the files they are built from. Each is a directory's content: names and texts; what can't be said so is done by `more`."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """`plain`: the same for a builder that knows no here-documents."""

    text: str
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    more: Callable[[Path], None] = lambda _context: None
    args: Mapping[str, str] = field(default_factory=dict[str, str])
    target: str | None = None
    plain: str | None = None

    def write(self, context: Path) -> None:
        """Into an empty directory."""
        for name, text in {**self.files, "Dockerfile": self.text, **({} if self.plain is None else {"Dockerfile.plain": self.plain})}.items():
            path = context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755 if text.startswith("#!") else 0o644)
        self.more(context)


PYTHON_APP = Case(
    """\
# syntax=docker/dockerfile:1
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \\
    PIP_NO_CACHE_DIR=1

WORKDIR /app
RUN groupadd --system --gid 999 app && useradd --system --uid 999 --gid app --home-dir /app app

COPY requirements.txt .
RUN pip install -r requirements.txt

COPY --chown=app:app . .
USER app
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=3s CMD python -c "import app" || exit 1
CMD ["python", "-m", "app"]
""",
    {
        "requirements.txt": "greeting==1.0\ncounting>=2\n",
        "app/__init__.py": "",
        "app/__main__.py": "import counting, greeting\ngreeting.main()\nprint(counting.UP_TO)\n",
        ".dockerignore": "Dockerfile\n.dockerignore\n**/__pycache__\n",
    },
)

_LOCK = {
    "name": "site",
    "version": "1.0.0",
    "lockfileVersion": 3,
    "requires": True,
    "packages": {
        "": {"name": "site", "version": "1.0.0", "dependencies": {"ours": "file:vendor/ours"}},
        "node_modules/ours": {"resolved": "vendor/ours", "link": True},
        "vendor/ours": {"version": "2.0.0"},
    },
}

NODE_STAGES = Case(
    """\
FROM node:18-slim AS deps
WORKDIR /app
COPY package.json package-lock.json ./
COPY vendor ./vendor
RUN npm ci --offline --no-audit --no-fund --no-update-notifier --cache /tmp/npm --logs-max=0 && rm -rf /root/.npm

FROM deps AS build
COPY . .
RUN npm run build --no-update-notifier --cache /tmp/npm --logs-max=0 && rm -rf /root/.npm

FROM deps AS test
RUN exit 1

FROM node:18-slim AS runner
ENV NODE_ENV production
WORKDIR /app
COPY --from=build --chown=node:node /app/dist ./dist
COPY --from=deps /app/node_modules ./node_modules
COPY --from=deps /app/vendor ./vendor
COPY --from=build /app/package.json .
USER node
EXPOSE 3000/tcp
CMD node dist/index.js
""",
    {
        "package.json": json.dumps({"name": "site", "version": "1.0.0", "scripts": {"build": "node build.js"}, "dependencies": {"ours": "file:vendor/ours"}}),
        "package-lock.json": json.dumps(_LOCK),
        "vendor/ours/package.json": json.dumps({"name": "ours", "version": "2.0.0", "main": "index.js"}),
        "vendor/ours/index.js": "module.exports = 6 * 7\n",
        "build.js": "const fs = require('fs'); fs.mkdirSync('dist'); fs.writeFileSync('dist/index.js', `console.log(${require('ours')})\\n`)\n",
        ".dockerignore": "node_modules\ndist\n",
    },
)

GO_STATIC = Case(
    """\
FROM golang:1-bookworm AS build
WORKDIR /src
COPY go.mod ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN --mount=type=cache,target=/root/.cache/go-build \\
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false -ldflags="-s -w" -o /out/app ./cmd/app

FROM scratch
COPY --from=build /out/app /app
USER 65532:65532
ENTRYPOINT ["/app"]
""",
    {"go.mod": "module example.com/app\n\ngo 1.19\n", "cmd/app/main.go": 'package main\n\nimport "os"\n\nfunc main() { os.Stdout.WriteString("static\\n") }\n'},
)

UV_PROJECT = Case(
    """\
FROM python:3.11-slim AS build
COPY --from=ghcr.io/astral-sh/uv:latest /uv /bin/
WORKDIR /app
ENV UV_LINK_MODE=copy UV_PYTHON=/usr/bin/python3 UV_NO_INDEX=1 UV_FIND_LINKS=/srv/wheels UV_OFFLINE=1
RUN --mount=type=cache,target=/root/.cache/uv \\
    --mount=type=bind,source=pyproject.toml,target=/app/pyproject.toml \\
    uv sync --no-install-project --no-progress
COPY . /app
RUN --mount=type=cache,target=/root/.cache/uv uv sync --no-progress

FROM python:3.11-slim
COPY --from=build --chown=1000:1000 /app /app
ENV PATH="/app/.venv/bin:$PATH"
WORKDIR /app
CMD ["python", "main.py"]
""",
    {
        "pyproject.toml": '[project]\nname = "work"\nversion = "0.1"\nrequires-python = ">=3.11"\ndependencies = ["greeting", "counting>=2"]\n[tool.uv]\npackage = false\n',
        "main.py": "import greeting\ngreeting.main()\n",
    },
)

APT_AND_VENV = Case(
    """\
FROM debian:bookworm-slim AS base
RUN apt-get update \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends jq \\
    # what apt leaves
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin

FROM python:3.11-slim AS venv
ENV VIRTUAL_ENV=/opt/venv
RUN python3 -m venv $VIRTUAL_ENV
ENV PATH="$VIRTUAL_ENV/bin:$PATH"
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir -r /tmp/requirements.txt

FROM base
COPY --from=venv /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN jq --version > /jq-version && ls /opt/venv/bin > /programs
ENTRYPOINT ["jq"]
CMD ["--version"]
""",
    {"requirements.txt": "# ours\ngreeting\n"},
)

HEREDOCS = Case(
    """\
FROM debian:bookworm-slim
ARG NAME=world
RUN <<EOF
set -e
mkdir -p /made
echo "hello $NAME" > /made/greeting
EOF
RUN <<'EOF' bash
for n in 1 2 3; do echo "$n"; done > /made/numbers
EOF
RUN cat <<A > /made/a && cat <<B > /made/b
first
A
second
B
COPY <<index.html <<-'style.css' /srv/www/
<p>hello $NAME</p>
index.html
	p { color: $NAME }
style.css
COPY --chmod=755 <<EOF /usr/local/bin/start
#!/bin/sh
exec echo started
EOF
RUN <<EOF
#!/bin/bash
declare -A of=([a]=1)
echo "${of[a]}" > /made/interpreter
EOF
""",
    plain="""\
FROM debian:bookworm-slim
ARG NAME=world
RUN mkdir -p /made && echo "hello $NAME" > /made/greeting && for n in 1 2 3; do echo "$n"; done > /made/numbers
RUN echo first > /made/a && echo second > /made/b
COPY --chown=0:0 www /srv/www/
COPY --chmod=755 start /usr/local/bin/start
RUN echo 1 > /made/interpreter
""",
    files={"www/index.html": "<p>hello world</p>\n", "www/style.css": "p { color: $NAME }\n", "start": "#!/bin/sh\nexec echo started\n"},
)

COPY_FROM = Case(
    """\
FROM busybox:1.36 AS first
RUN mkdir -p /tree/deep/er /tree/empty && echo a > /tree/a && ln /tree/a /tree/deep/hard && ln -s ../a /tree/deep/link && ln -s nowhere /tree/dangling \\
    && echo b > /tree/deep/er/b && chmod 4750 /tree/deep/er/b && chown 12:34 /tree/deep/er/b && chmod 1777 /tree/empty && chown -R 7:8 /tree/deep/er

FROM busybox:1.36
RUN echo second > /second
RUN ln -s /somewhere /elsewhere && mkdir /somewhere

FROM busybox:1.36
COPY --from=first /tree /all
COPY --from=first /tree/a /tree/deep/link /files/
COPY --from=first --chown=nobody /tree/deep/er/b /renamed
COPY --from=1 /second /
COPY --from=1 /somewhere /there/
COPY --from=busybox:1.36 /bin/busybox /other/bin/
COPY --from=first /tree/deep /all/deep
COPY --from=first /tree/de* /matched/
WORKDIR /all
""",
)

ARG_BEFORE_FROM = Case(
    """\
ARG VERSION=0.0
ARG BASE=busybox
ARG UNUSED=x
FROM ${BASE}:${VERSION} AS base
ARG VERSION
ARG FLAVOUR=plain
ARG EMPTY
LABEL version="$VERSION" flavour=${FLAVOUR:-none} title="with \\"quotes\\" and \\$dollar" \\
      empty="${EMPTY:-nothing}" there=${VERSION:+yes}
ENV PLACE=/opt/${FLAVOUR}
WORKDIR ${PLACE}/sub
RUN echo "$VERSION $FLAVOUR ${UNUSED-unset} $PLACE" > said
ARG FLAVOUR=later
RUN echo "$FLAVOUR" > later
ENV FLAVOUR=of-env
RUN echo "$FLAVOUR" > env
COPY ${FLAVOUR}.txt $PLACE/
FROM base AS final
ARG VERSION=own
ENV KEPT=$VERSION
USER ${NOBODY:-nobody}
FROM base AS not-wanted
RUN exit 1
""",
    {"of-env.txt": "file\n"},
    args={"VERSION": "1.36", "FLAVOUR": "given"},
    target="final",
)


def _archive(context: Path) -> None:
    (context / "odd name.txt").write_text("odd\n")
    with tarfile.open(context / "bundle.tar.gz", "w:gz") as tar:
        for name, mode, uid in (("in/one", 0o640, 3), ("in/two", 0o755, 0)):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid = 0, mode, uid, uid
            tar.addfile(info)
    os.symlink("keep.txt", context / "link.txt")
    (context / "private").mkdir(mode=0o700)
    (context / "private" / "key").write_text("key\n")
    (context / "private" / "key").chmod(0o600)
    (context / "empty").mkdir()


DOCKERIGNORE = Case(
    """\
FROM busybox:1.36
COPY . /all/
COPY src/ /src
COPY *.txt some/*/deep.[ch] /glob/
COPY ["odd name.txt", "/quoted name/"]
ADD bundle.tar.gz /unpacked/
ADD keep.txt /renamed.txt
COPY bundle.tar.gz /as-it-is/
COPY private /private
RUN find /all | sort > /list
""",
    {
        ".dockerignore": "# comment\n*.log\n!important.log\n**/cache\nsrc/*.tmp\n/rooted.txt\nsome/?/left\ndocs\n!docs/README.md\n  spaced.md  \n.git\n**/*.pyc\n",
        "keep.txt": "keep\n",
        "a.log": "no\n",
        "important.log": "yes\n",
        "sub/a.log": "yes: only at the top\n",
        "sub/cache/x": "no\n",
        "src/main.c": "int x;\n",
        "src/x.tmp": "no\n",
        "src/deep/x.tmp": "yes\n",
        "rooted.txt": "no\n",
        "sub/rooted.txt": "yes\n",
        "some/a/left": "no\n",
        "some/a/deep.c": "c\n",
        "some/b/deep.h": "h\n",
        "some/bb/left": "yes\n",
        "docs/guide.md": "no\n",
        "docs/README.md": "yes\n",
        "spaced.md": "no\n",
        ".git/config": "no\n",
        "lib/x.pyc": "no\n",
        "lib/x.py": "yes\n",
        "script.sh": "#!/bin/sh\n",
    },
    _archive,
)

USERS_AND_PLACES = Case(
    """\
FROM debian:bookworm-slim
LABEL maintainer="someone <a@example.com>" org.example.multi="line one \\
line two"
RUN useradd --create-home --uid 1500 --shell /bin/sh alice
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /srv
WORKDIR app
WORKDIR ./data/../logs
RUN pwd > where && false | true || echo piped > pipefail
USER alice
WORKDIR /home/alice/work
RUN id -un > ~/me && pwd >> ~/me && echo "$HOME" >> ~/me && umask >> ~/me
COPY file.txt .
COPY --chown=alice file.txt mine.txt
COPY --chown=1500:0 --chmod=600 file.txt /home/alice/secret/deep/file.txt
USER root:alice
RUN id -gn > /group
USER 1500
RUN id -u > ~/number 2>/dev/null || id -u > /tmp/number; echo "${HOME:-none}" > /tmp/home
ENV A=1 B="two words" C=three\\ words
ENV D $A and $B
ENV PATH=$PATH:/extra
RUN echo "$A|$B|$C|$D|$PATH" > /tmp/env
EXPOSE 80 443/tcp 53/udp
STOPSIGNAL SIGINT
ENTRYPOINT exec top -b
CMD ["first"]
ENTRYPOINT ["/bin/echo", "entry"]
""",
    {"file.txt": "file\n"},
)

CASES = {
    "python-slim app": PYTHON_APP,
    "node multi-stage": NODE_STAGES,
    "go static": GO_STATIC,
    "uv project": UV_PROJECT,
    "apt and venv": APT_AND_VENV,
    "here-documents": HEREDOCS,
    "COPY --from": COPY_FROM,
    "ARG before FROM": ARG_BEFORE_FROM,
    ".dockerignore": DOCKERIGNORE,
    "USER and WORKDIR": USERS_AND_PLACES,
}
