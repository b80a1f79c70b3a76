"""TReCS over data: words are tagged, masks are retrieved, a label map is composed of them; a generator paints it."""
