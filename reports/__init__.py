"""Readers: from records on disk to tables, figures and one offline page. No torch."""
