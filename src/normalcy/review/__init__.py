"""A page to judge the images of results folders on; its judgements come back as labels (``normalcy review``).

`store` keeps decisions (SQLite), `labels` writes them as tables, `session` is what the page shows, `pixels` the bytes of images,
`masks` those of masks, `server` the web application, `exports` the files for other tools.
"""
