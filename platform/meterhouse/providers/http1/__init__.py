"""A lean HTTP/1.1 client on httptools: answers are fed by the transport's callbacks, with no task or timer each."""
