"""What others' tools read of ours, and what of theirs we begin from: Hugging Face transformers and peft."""
