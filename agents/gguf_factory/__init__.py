"""The factory: one leased job becomes a validated GGUF, stage by stage.

A module that a stage is named after holds the stage. Where to look:

- the agent and its jobs: agent, worker (on a rented machine), pipeline, job, work, plan, machine, device, recovery
- processes: launcher, zygote, forked, process, program, child, lines, lifeline, sources, threads
- bases: base, support, trial, sizes, light, chat, template, pretokenizer
- data: data, dataset, place, compression, records, formats, split, packing, rows
- what `meetara data check` finds: check, lengths, near, suspicion, personal
- training: train, loop, lora, targets, flat, spans, abreast, checkpoint, checkpoint_store, divergence
- from an adapter to a file: merge, convert, converter, quantise, imatrix, adapter, shared_base, gguf_values
- gates and proof: validate, subject, measure, gates, fidelity, distance, tensors, footprint, gguf_header
- programs behind commands: proof (`validate`), compare (`quantize`), talk (`chat`), doctor, toolchain, gc
- llama.cpp: llama, generation
- machines elsewhere, and the store that all reach: staging, store, pace
- finished models: publish, card, front_matter, curves, cache, fingerprint, hashes, storage
"""
