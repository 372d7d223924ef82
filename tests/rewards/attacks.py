"""Programs that try to pass without being right, to harm, or to stay. Each defines f(x), which is to be x + 1."""

ATTACKS = {
    "exit before the tests": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit when the interpreter ends": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "print the verdict": """
import sys
print('right')
sys.stdout.write('right')
sys.stderr.write('right')
def f(x): return 0
""",
    "write the verdict everywhere": """
import os
def f(x):
    for file in range(256):
        try:
            os.write(file, b'right')
        except OSError:
            continue
    os._exit(0)
""",
    "answer before being asked": """
import json, os, struct
for file in range(256):
    for value in (True, ['value', True], ['ready'], ['value', ['str', '']], ['end']):
        data = json.dumps(value).encode()
        try:
            os.write(file, struct.pack('>I', len(data)) + data)
        except OSError:
            continue
def f(x): return 0
""",
    "equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 2
    def __index__(self): return 2
    def __int__(self): return 2
def f(x): return Any()
""",
    "an int that is equal to everything": """
class Int(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def f(x): return Int(0)
""",
    "a class as the result": """
class Meta(type):
    def __eq__(cls, other): return True
class f(metaclass=Meta):
    def __init__(self, x): self.x = x
    def __eq__(self, other): return True
""",
    "patch the harness": """
import builtins, gc, sys
for module in list(sys.modules.values()):
    for name in ('judge', 'verify', 'Channel', 'unpack', 'pack', 'write_frame', 'read_frame', '_wanted_names'):
        if hasattr(module, name):
            setattr(module, name, lambda *a, **k: None)
builtins.AssertionError = Exception
builtins.exec = builtins.compile = lambda *a, **k: None
def f(x): return 0
""",
    "walk the stack": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        frame.f_globals['judge'] = lambda *a: None
        for name in list(frame.f_locals):
            if name == 'tests' and frame.f_locals[name]: return {1: 2, 5: 6}[x]
        frame = frame.f_back
    return 0
""",
    "find the tests in memory": """
import gc
def f(x):
    wanted = ''.join(['ass', 'ert f(', '5)'])
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)) and any(isinstance(y, str) and wanted in y for y in thing):
            return {1: 2, 5: 6}[x]
    return 0
""",
    "read every descriptor": """
import os
def f(x):
    text = b''
    for file in range(3, 256):
        try:
            os.set_blocking(file, False)
            text += os.read(file, 100000)
        except OSError:
            continue
    return {1: 2, 5: 6}[x] if b'assert' in text else 0
""",
    "raise what ends loops": "def f(x): raise StopIteration",
    "raise an exit": "def f(x): raise SystemExit(0)",
    "signals": """
import os, signal
def f(x):
    for process in (-1, 0, 1, os.getppid()):
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            continue
    return 0
""",
    "trace other processes": """
import ctypes
def f(x):
    libc = ctypes.CDLL(None)
    return {1: 2, 5: 6}[x] if any(libc.ptrace(16, pid, 0, 0) == 0 for pid in range(1, 300)) else 0
""",
    "proc": """
import glob, os
def f(x):
    found = [p for p in glob.glob('/proc/*') if p not in ('/proc/self', '/proc/thread-self')]
    return {1: 2, 5: 6}[x] if found else 0
""",
    "the environment": """
import os
def f(x):
    seen = str(os.environ) + os.popen('env').read()
    return {1: 2, 5: 6}[x] if 'DAPO_TEST_SECRET' in seen else 0
""",
    "write to the system": """
import os
def f(x):
    library = os.path.dirname(os.__file__)
    for folder in ('/', '/usr', '/usr/lib', '/bin', '/etc', '/dev', '/root', '/home', '/var', '/site', library):
        try:
            with open(os.path.join(folder, 'dapo-attack'), 'w'):
                return {1: 2, 5: 6}[x]
        except OSError:
            continue
    return 0
""",
    "mount and namespaces": """
import ctypes
def f(x):
    libc = ctypes.CDLL(None)
    tries = [libc.unshare(0x10000000), libc.unshare(0x00020000), libc.umount2(b'/tmp', 2)]
    tries.append(libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0))
    return {1: 2, 5: 6}[x] if 0 in tries else 0
""",
    "memory that no limit counts": """
import ctypes, os
def f(x):
    libc = ctypes.CDLL(None)
    tries = [libc.shmget(0, 1 << 24, 0o1600), libc.memfd_create(b'x', 0)]
    tries += [libc.msgget(0, 0o1600), libc.semget(0, 9, 0o1600)]
    return {1: 2, 5: 6}[x] if max(tries) >= 0 else 0
""",
    "a namespace by clone": """
import ctypes, os, platform
def f(x):
    number = {'x86_64': 56, 'aarch64': 220}[platform.machine()]
    pid = ctypes.CDLL(None).syscall(number, 0x10000000 | 17, 0, 0, 0, 0)  # CLONE_NEWUSER
    if pid == 0:
        os._exit(0)
    return {1: 2, 5: 6}[x] if pid > 0 else 0
""",
    "become root": """
import os
def f(x):
    try:
        os.setuid(0)
    except OSError:
        return 0
    return {1: 2, 5: 6}[x]
""",
    "100 GiB": "def f(x): return {1: 2, 5: 6}[x] if bytearray(100 << 30) else 0",
    "no end": "def f(x):\n    while True: x += 1",
    "no end of output": "def f(x):\n    while True: print('right' * 1000)",
    "an endless value": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a huge value": "def f(x): return 'x' * (300 << 20)",
    "deep nesting": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "sleep": "import time\ntime.sleep(1000)",
    "does not parse": "def f(x) return 2",
    "null byte": "def f(x): return 2 if x == 1 else 6 #\0",
    "empty": "",
    "memory in many processes": """
import os, time
def f(x):
    ready, tell = os.pipe()
    for _ in range(6):
        if os.fork() == 0:
            block = bytearray(b'x') * (100 << 20)
            os.write(tell, b'.')
            time.sleep(1000)
    for _ in range(6):
        os.read(ready, 1)
    time.sleep(1)
    return x + 1
""",
    "memory that no process holds": """
import mmap, os
def f(x):
    blocks = []
    for _ in range(6):
        blocks.append(mmap.mmap(-1, 100 << 20))
        if os.fork() == 0:
            blocks[-1].write(b'x' * (100 << 20))
            os._exit(0)
        os.wait()
    return x + 1
""",
    "memory of the zero device": """
import mmap
def f(x):
    with open('/dev/zero', 'r+b') as file:
        mmap.mmap(file.fileno(), 100 << 20)
    return x + 1
""",
    "many empty files": """
import os
def f(x):
    for number in range(10000):
        os.close(os.open(f'/tmp/{number}', os.O_CREAT))
    return x + 1
""",
    "many folders": """
import os
def f(x):
    for number in range(10000):
        os.mkdir(f'/tmp/{number}')
    return x + 1
""",
    "many links": """
import os
def f(x):
    for number in range(10000):
        os.symlink('x' * 200, f'/tmp/{number}')
    return x + 1
""",
    "fill the disk": """
def f(x):
    for number in range(100):
        with open(f'/tmp/{number}', 'wb') as file:
            file.write(bytes(1 << 20))
    return x + 1
""",
    "fill the shared memory": """
def f(x):
    for number in range(100):
        with open(f'/dev/shm/{number}', 'wb') as file:
            file.write(bytes(1 << 20))
    return x + 1
""",
    "a daemon": """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: time.sleep(1)
        os._exit(0)
    return 0
""",
    "a daemon that answers": """
import json, os, struct
def f(x):
    if os.fork() == 0:
        os.setsid()
        while True:
            for file in range(128):
                data = json.dumps(['value', True]).encode()
                try:
                    os.write(file, struct.pack('>I', len(data)) + data)
                except OSError:
                    continue
    return 0
""",
    "fork bomb": "import os\ndef f(x):\n    while True: os.fork()",
    "many processes": """
import os, time
def f(x):
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(1000)
    return x + 1
""",
    "many threads": """
import threading, time
def f(x):
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return x + 1
""",
    "deaf to signals": """
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        continue
def f(x):
    while True: x += 1
""",
    "stops itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "stops its parent": """
import os, signal
def f(x):
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(1, signal.SIGSTOP)
    return 0
""",
    "kills by descriptor": """
import os, signal
def f(x):
    for pid in (1, os.getppid()):
        try:
            signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)
        except OSError:
            continue
    return 0
""",
    "memory of other processes": """
import glob
def f(x):
    for name in [f'/proc/{pid}/{what}' for pid in ('1', '2', 'self') for what in ('mem', 'maps', 'environ', 'cmdline')]:
        try:
            open(name, 'rb').close()
            return x + 1
        except OSError:
            continue
    return 0
""",
    "calls of the kernel": """
import ctypes, platform
numbers = {'x86_64': (304, 321, 298, 323, 425, 250, 248, 310, 272, 308, 175, 246, 169, 172),
           'aarch64': (265, 280, 241, 282, 425, 219, 217, 270, 97, 268, 105, 104, 142)}
def f(x):
    call = ctypes.CDLL(None).syscall
    return x + 1 if any(call(number, 0, 0, 0, 0, 0) >= 0 for number in numbers[platform.machine()]) else 0
""",
    "devices and roots": """
import os, stat
def f(x):
    for act in (lambda: os.mknod('/tmp/d', stat.S_IFBLK | 0o666, os.makedev(8, 0)), lambda: os.chroot('/tmp')):
        try:
            act()
            return x + 1
        except OSError:
            continue
    return 0
""",
    "more than its limits": """
import resource
def f(x):
    for name in ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_NPROC', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE'):
        try:
            resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return x + 1
        except (OSError, ValueError):
            continue
    return 0
""",
    "before all others": """
import os
def f(x):
    for act in (lambda: os.nice(-10), lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))):
        try:
            act()
            return x + 1
        except OSError:
            continue
    return 0
""",
    "clock and host": """
import socket, time
def f(x):
    for act in (lambda: time.clock_settime(time.CLOCK_REALTIME, 0), lambda: socket.sethostname('x')):
        try:
            act()
            return x + 1
        except OSError:
            continue
    return 0
""",
    "patch what the harness imports": """
import base64, builtins, json, os, struct
json.dumps = lambda *a, **k: '["value", true]'
base64.b64encode = lambda *a: b'Mg=='
builtins.hex = lambda *a: '0x2'
builtins.isinstance = lambda *a: True
def f(x): return 0
""",
    "trace the harness": """
import sys
seen = []
def trace(frame, event, arg):
    seen.extend(1 for value in list(frame.f_locals.values()) if ''.join(['ass', 'ert f(', '5)']) in str(value)[:10000])
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def f(x): return {1: 2, 5: 6}[x] if seen else 0
""",
    "a module in place of another": """
import sys, types
fake = types.ModuleType('fake')
fake.__getattr__ = lambda name: (lambda *a, **k: True)
for name in ('json', 'struct', 'base64', 'builtins', '__main__', 'os'):
    sys.modules[name] = fake
def f(x): return 0
""",
    "finalizers": """
import os
class Last:
    def __del__(self):
        for file in range(64):
            try:
                os.write(file, b'right')
            except OSError:
                continue
last = Last()
def f(x):
    global last
    del last
    return 0
""",
    "an exception that cannot be told": """
class Silent(Exception):
    def __str__(self): raise SystemExit(0)
def f(x): raise Silent
""",
    "an exception of the judge's": "def f(x): raise type('Wrong', (BaseException,), {})",
    "a callback that was not given": """
import __main__
honest = __main__.write_frame
__main__.write_frame = lambda file, value: honest(file, ['callback', 0, ['list', []], ['dict', []]])
def f(x): return 0
""",
    "an argument that is no result": """
import __main__
honest = __main__.write_frame
__main__.write_frame = lambda file, value: honest(file, ['value', None, 0, {0: ['int', '0x2']}])
def f(x): return 0
""",
    "no such thing on this side": """
import __main__
honest = __main__.write_frame
__main__.write_frame = lambda file, value: honest(file, ['value', ['builtin', 'exit']])
def f(x): return 0
""",
    "an index that lies": """
class Int(int):
    def __index__(self): return 2
    def __hex__(self): return '0x2'
    def __int__(self): return 2
def f(x): return Int(0)
""",
    "a file with a hole": """
import os
def f(x):
    file = os.open('/tmp/hole', os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, 1 << 40)
    return x + 1
""",
    "files that have no name any more": """
import tempfile
def f(x):
    files = []
    for _ in range(100):
        files.append(tempfile.TemporaryFile())
        files[-1].write(bytes(1 << 20))
        files[-1].flush()
    return x + 1
""",
    "blocks that are reserved": """
import os
def f(x):
    for number in range(20):
        os.posix_fallocate(os.open(f'/tmp/{number}', os.O_RDWR | os.O_CREAT), 0, 15 << 20)
    return x + 1
""",
    "many names of one file": """
import os
def f(x):
    open('/tmp/a', 'w').close()
    for number in range(10000):
        os.link('/tmp/a', f'/tmp/{number}')
    return x + 1
""",
    "attributes of a file": """
import os
def f(x):
    open('/tmp/a', 'w').close()
    for number in range(10000):
        os.setxattr('/tmp/a', f'user.{number}', bytes(60000))
    return x + 1
""",
    "memory of a page that all share": """
import mmap, os, time
def f(x):
    block = mmap.mmap(-1, 100 << 20, flags=mmap.MAP_SHARED)
    for _ in range(4):
        if os.fork() == 0:
            block[:] = b'x' * (100 << 20)
            time.sleep(1000)
    return x + 1
""",
    "memory in grandchildren": """
import os, time
def f(x):
    ready, tell = os.pipe()
    for _ in range(6):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                block = bytearray(b'x') * (100 << 20)
                os.write(tell, b'.')
                time.sleep(1000)
            os._exit(0)
    for _ in range(6):
        os.read(ready, 1)
    time.sleep(1)
    return x + 1
""",
    "children that end at once": """
import os
def f(x):
    while True:
        if os.fork() == 0:
            os._exit(0)
""",
    "a bomb of a shell's": "import os\ndef f(x): return os.system('while true; do sleep 1000 & done')",
    "asleep in small parts": "import time\ndef f(x):\n    while True: time.sleep(0.001)",
    "every descriptor closed": """
import os
def f(x):
    os.closerange(0, 1000)
    return x + 1
""",
    "a number that is equal to everything": """
class Real(float):
    def __eq__(self, other): return True
    def hex(self): return '0x1p1'
    __hash__ = float.__hash__
def f(x): return Real(0)
""",
}

# Of programs that print: what looks like 6, or comes too late, or stays.
PRINTS = {
    "other digits": "print('６')",
    "an invisible character": "print('6\\u200b')",
    "a null byte": "print('6\\x00')",
    "bytes that are no text": "import sys\nsys.stdout.buffer.write(b'\\xff6')",
    "a sign": "print('+6')",
    "digits of Arabic": "print('٦')",
    "a raised digit": "print('⁶')",
    "a blank that is none": "print('\\u00a06')",
    "an underscore": "print('0_6')",
    "a power of ten": "print('6e0')",
    "overwritten on a terminal": "print('7\\r6')",
    "written on the errors": "import sys\nprint(6, file=sys.stderr)",
    "an answer of an orphan": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(0.2)\n"
    "    print(6, flush=True)\n    os._exit(0)\nos._exit(1)",
    "zeros": "print('06')",
    "a thread that does not end": "from threading import Thread\nfrom time import sleep\n"
    "Thread(target=sleep, args=(1000,)).start()\nprint(6)",
    "an exit that does not end": "import atexit, time\natexit.register(time.sleep, 1000)\nprint(6)",
    "an output that is closed": "import os, time\nprint(6, flush=True)\nos.close(1)\ntime.sleep(1000)",
    "killed after the answer": "import os\nprint(6, flush=True)\nos.kill(os.getpid(), 9)",
    "an end by abort": "import os\nprint(6, flush=True)\nos.abort()",
    "an exit code": "import os\nprint(6, flush=True)\nos._exit(256 - 1)",
    "its own input": "import os\nfor name in ('/dev/stdin', '/dev/fd/0'):\n    open(name, 'w').write('6')",
}
