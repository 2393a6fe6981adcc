"""A speaker node honest enough to be the firmware's reference, and a fleet of them in one process.

`node` is the box (service, inspectable state, fault verbs), `firmware` one life of it from power-on; `player` asks
`speaker_protocol.rules.decide` what to sound, `output` is the sound card on a crystal of its own, `ear` says what was
heard. It shares the wire's definition with the server and nothing else.
"""
