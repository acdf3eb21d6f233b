"""Pictures found by words, by a picture, or by both: an index that is kept beside them, and queries against it.

Needs a model through ``clip.inference`` and a store for embeddings: SQLite (with faiss when large), or Milvus.
Start reading at ``index``; ``store`` says what a store must do.
"""
