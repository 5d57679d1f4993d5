# Sourced by the scripts beside it: run one of our commands with a Python that is new enough.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
lodestar() {
    local check candidate
    for check in 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 'import sys; sys.exit(sys.version_info < (3, 10))'; do
        for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13 python3.10 python; do
            if "$candidate" -c "$check" >/dev/null 2>&1; then
                exec "$candidate" -u "$here/_main.py" "$@"
            fi
        done
    done
    echo "error: no Python 3.10 or newer was found. Install one (Debian and Ubuntu: sudo apt install python3 python3-venv), or name it: PYTHON=/path/to/python $0" >&2
    exit 1
}
