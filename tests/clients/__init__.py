"""Real clients of OpenAI's interface, unmodified and in environments of their own, against the running service.

The rules of a stream of chunks, as the tests name them. Each keeps real clients from a fault that they have:

1. A heartbeat is one line of comment, without a blank line behind it. openai-python parses a frame without data.
2. Each frame has `data:`, and all data are chunks, but for errors and `[DONE]`.
3. A body ends properly only behind `[DONE]`. The clients take any proper end for success.
4. No head has `Connection: close`. Node 20 takes any close for a proper end then.
5. No chunk has `"error": null` at its top level. openai-go fails for the key alone.
6. One chunk of the upstream is one frame. Who counts frames knows the cursor.
7. A `Location` is relative. That of a stream ends in `?stream=true`.
8. The hash of the end is over the data as they were sent. It stands in a comment, which no client sees.
9. Each stream opens with a heartbeat.
"""
