"""What would fail a launch over several hosts, found before it: `launch/preflight.py`.

survey.py       asks all hosts at once and gathers what they said
asking.py       one host over ssh, within a time
host_probe.py   what runs there: versions, code, GPUs, storage … as one line of JSON
link_probe.py   what runs there for latency and bandwidth to the first host
facts.py        the answers, typed
checks.py       what differs or is missing (problems), and what is only unwise (warnings)
table.py        a row for each host

DeepSpeed itself asks the first host only, and learns of the others when they fail to come.
"""
