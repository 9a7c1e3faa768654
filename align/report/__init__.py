"""What a person reads of a run: report.html, align compare, the model card. Files in, pages out; no model is loaded."""
