"""Clients by OpenSSL: idle ones, and busy ones that hash what they send and what they hear.

usage: load.py HOST PORT IDLE BUSY BYTES SEED

Half of them speak TLS 1.2. Says `open PORT` for each connection, then `ready`. A line on standard input is the end:
idle ones say a word, busy ones go on until BYTES have gone through each. Says `broken PORT REASON` for each that has
failed, and `done BYTES` last.
"""

import hashlib
import random
import socket
import ssl
import sys
import threading

host, port, idle, busy, quota, seed = sys.argv[1], *map(int, sys.argv[2:7])
ended = threading.Event()
lock = threading.Lock()
total = 0


def say(text):
    with lock:
        print(text, flush=True)


def context(version):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = version
    return made


contexts = [context(ssl.TLSVersion.TLSv1_2), context(ssl.TLSVersion.TLSv1_3)]


def connect(number):
    stream = contexts[number % 2].wrap_socket(socket.create_connection((host, port)))
    stream.settimeout(60)
    say(f"open {stream.getsockname()[1]}")
    return stream


def hear(stream, count, heard):
    while count > 0:
        some = stream.recv(min(count, 65536))
        if not some:
            raise ConnectionError("an end")
        heard.update(some)
        count -= len(some)


def exchange(stream, text, said, heard):
    # More than the buffers on the way take is said while the answer is heard.
    said.update(text)
    for start in range(0, len(text), 32768):
        piece = text[start:start + 32768]
        stream.sendall(piece)
        hear(stream, len(piece), heard)


def guarded(stream, work):
    try:
        work()
    except Exception as error:
        say(f"broken {stream.getsockname()[1]} {error!r}")


def run_busy(number, stream):
    def work():
        global total
        dice = random.Random(seed * 1000 + number)
        said, heard, gone = hashlib.sha256(), hashlib.sha256(), 0
        while gone < quota or not ended.is_set():
            text = dice.randbytes(dice.choice([1, 100, 5000, 20000, 200000]))
            exchange(stream, text, said, heard)
            gone += len(text)
        if said.digest() != heard.digest():
            raise ConnectionError("another hash")
        stream.unwrap()
        with lock:
            total += gone

    guarded(stream, work)


idlers = [connect(number) for number in range(idle)]
workers = [connect(number) for number in range(busy)]
threads = [threading.Thread(target=run_busy, args=it) for it in enumerate(workers)]
for thread in threads:
    thread.start()
say("ready")
sys.stdin.readline()
ended.set()
for stream in idlers:
    def work():
        said, heard = hashlib.sha256(), hashlib.sha256()
        exchange(stream, b"still here", said, heard)
        stream.unwrap()

    guarded(stream, work)
for thread in threads:
    thread.join()
say(f"done {total}")
