"""Plays the program of a configuration against a scripted policy, and reports whether this agent can be trained.

checking.py          plays all plays, and returns the rows of the report
playing.py           plays the environment once, and returns what was seen
proxy.py             stands between the program and the gateway: records requests, and answers one with a fault
faults.py            the faults, and the errors of each dialect
script.py            the scripted policy, which knows nothing of the program
tool_choice.py       chooses harmless tools
tool_arguments.py    makes arguments from the schema of a tool
text_actions.py      finds in a prompt how agents without tools run commands
answer_tokens.py     writes an answer as the tokens that a model would sample
scripted_client.py   gives the answers of the script in the place of an engine
observed.py          the session that notes each turn
raw_answers.py       reads the assistant's messages in the body of a request
echo_fields.py       compares these messages with what was sent, field by field
prompts.py           compares the prompts of two requests
findings.py          the rows about the normal play
endings.py           the rows about a failed start and about the end
refused_requests.py  says why a request was refused, and what corrects it
fault_findings.py    the rows about the plays with a fault
"""
