"""docs/PERFORMANCE.md and its plots, from the results of the benchmarks."""

import statistics

TARGETS = {  # workload: [(peer, what the ratio must reach)]
    "4 KiB random write, q1": [("nbdkit memory", 0.85)],
    "4 KiB random write, q32": [("nbdkit memory", 0.85), ("qemu-nbd qcow2", 3.5)],
    "4 KiB write + flush, q1": [("qemu-nbd raw", 1.5)],
    "4 KiB random read, q1": [("nbdkit memory", 0.9)],
    "4 KiB random read, q32": [("nbdkit memory", 0.9)],
    "1 MiB sequential write, q8": [("qemu-nbd raw", 1.5)],
    "1 MiB sequential read, q8": [("qemu-nbd raw", 1.5)],
}


def verdict(reached):
    return "reached" if reached else "**not reached**"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def ratio(rows, peer):
    """The median, over the rounds, of ours / the peer's in the same round."""
    return statistics.median(a / b for a, b in zip(rows["cairn"], rows[peer]))


def compared(figures):
    rows = []
    for workload, found in figures.items():
        speeds = [f"{statistics.median(v):,.0f}" for v in found.values()]
        for peer, target in TARGETS[workload]:
            reached = ratio(found, peer)
            rows.append([workload, *speeds, f"/ {peer}", f"{reached:.2f}", f">= {target}", verdict(reached >= target)])
    servers = list(next(iter(figures.values())))
    return table(["requests per second", *servers, "ratio", "measured", "target", ""], rows)


def bars(figures):
    """One group of bars per workload, each relative to the fastest of its group."""
    width, row, left = 720, 16, 210
    servers = list(next(iter(figures.values())))
    colours = ["#2a7de1", "#8a8f98", "#c98a2b", "#5a9e6f"]
    parts, y = [], 10
    for workload, found in figures.items():
        medians = {name: statistics.median(v) for name, v in found.items()}
        top = max(medians.values())
        parts.append(f'<text x="{left - 10}" y="{y + row * 2 + 4}" text-anchor="end">{workload}</text>')
        for colour, server in zip(colours, servers):
            length = max(1, (width - left - 90) * medians[server] / top)
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{row - 3}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 5:.0f}" y="{y + 11}">{medians[server]:,.0f}</text>')
            y += row
        y += 14
    for i, (colour, server) in enumerate(zip(colours, servers)):
        parts.append(f'<rect x="{left + i * 125}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + i * 125 + 15}" y="{y + 9}">{server}</text>')
    style = "text{font:11px sans-serif;fill:#444}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 22}" role="img">'
            f"<title>Requests per second, by workload and server</title><style>{style}</style>{''.join(parts)}</svg>\n")


def ms(value):
    return f"{value:.2f} ms"


def mib(value):
    return f"{value / (1 << 20):.1f} MiB"


def costs(figures):
    rows = []
    for name, found in figures.items():
        gib = found["mapped_bytes"] >> 30
        rows += [[f"{name}, {gib} GiB mapped", "", "", ""]]
        for what, key, bound in (("checkpoint", "checkpoint", 2),
                                 ("checkpoint, 1 GiB written in the second before", "checkpoint_after_gib", 2),
                                 ("restore", "restore", 5), ("fork", "fork", 5),
                                 ("delete a checkpoint", "delete_checkpoint", 5)):
            if key not in found:
                continue
            p99 = found[key]["durable"]["p99_ms"]
            rows.append([f"{what}: durable, p99 (pause of the thread)",
                         f"{ms(p99)} ({ms(found[key]['pause']['p99_ms'])})", f"<= {bound} ms", verdict(p99 <= bound)])
        trim, opened = found["trim_2_tib_ms"], found["open_after_kill_ms"]
        rows.append(["trim of 2 TiB", ms(trim), "<= 10 ms", verdict(trim <= 10)])
        rows.append(["open with an un-anchored tail", ms(opened), "<= 300 ms", verdict(opened <= 300)])
        per_tib = found["map_cache_bytes"] * (1 << 40) / found["mapped_bytes"]
        bound = 128 << 20 if name == "sequential" else 1.4 * (1 << 30)
        rows.append(["map pages in memory, all loaded, per TiB", mib(per_tib), f"<= {mib(bound)}", verdict(per_tib <= bound)])
        region = found["bytes_per_region"]
        rows.append(["map bytes per checkpoint and region touched", f"{region:,.0f}", "<= 2,048", verdict(region <= 2048)])
        for anchor in found["anchor"]:
            rows.append([f"pause of the thread by an anchor, {anchor['changed_nodes']:,} nodes changed",
                         ms(anchor["pause_ms"]), "", ""])
    return table(["", "measured", "target", ""], rows)


def paused(found):
    rows = [[name, ms(v["p50"]), ms(v["p99"]), ms(v["max"])] for name, v in (
        ("checkpoint over the control socket", found["checkpoint_ms"]),
        ("longest gap between two writes around it", found["write_gap_ms"]),
        ("longest gap in 10 ms without one", found["gap_without_ms"]))]
    return table(["1 GiB just written", "p50", "p99", "max"], rows)


def histories(found):
    def both(speeds):
        turns = [a / b for a, b in zip(speeds["vol"], speeds["plain"])]
        reached = statistics.median(turns)
        return f"{statistics.median(speeds['vol']):,.0f} ({reached:.2f})", reached >= 0.9

    rows = []
    for row in found:
        (read, read_reached), (write, write_reached) = both(row["read_iops"]), both(row["write_iops"])
        rows.append([f"{row['checkpoints']:,}", ms(row["create_ms"]["p50"]), read, write,
                     verdict(read_reached and write_reached)])
    return table(["checkpoints", "one more, p50", "reads per second (/ plain)", "writes per second (/ plain)",
                  ">= 0.9"], rows)


def attacked(found):
    rows = [[row["attack"], row["p50_us"], row["p99_us"], row["max_us"], f"{row['to_alone']:.2f}",
             "" if row["attack"].startswith("none") else verdict(row["to_alone"] <= 3)] for row in found]
    return table(["attack", "p50 us", "p99 us", "max us", "p99 / alone", "<= 3"], rows)


def forked(found):
    each, opened = found["resident_each_bytes"], found["open_ms"]
    return table(["", "measured", "target", ""], [
        [f"resident memory per fork, {found['forks']:,} forks written once", f"{each / 1024:.1f} KiB", "<= 100 KiB",
         verdict(each <= 100 << 10)],
        ["opening one and reading a block, p99", ms(opened["p99"]), "<= 5 ms", verdict(opened["p99"] <= 5)],
        ["forking, p99", ms(found["fork_ms"]["p99"]), "<= 5 ms", verdict(found["fork_ms"]["p99"] <= 5)]])


def ways(found):
    def us(value):
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    rows = []
    for work in found["work"]:
        rows.append([f"**{work['work']}**", "", "", "", "", ""])
        for row in work["ways"]:
            if row["us"] is None:
                rows.append([row["way"], "not to be had here", "", "", "", ""])
                continue
            rows.append([row["way"], us(row["us"]), f"{us(row['low_us'])} to {us(row['high_us'])}", us(row["cpu_us"]),
                         f"{row['to_first']:.2f}", row["kernel_workers"] or ""])
    head = ["", "us per request", "lowest to highest round", "processor us", "/ first", "kernel threads made"]
    where = (f"Linux {found['kernel']}, {found['file_system']}; {found['rounds']} rounds; other processes kept "
             f"{found['others_cores']:.1f} cores busy meanwhile.")
    return f"{where}\n\n{table(head, rows)}"


def rested(found):
    size = found["resident_bytes"]
    return table(["", "measured", "target", ""], [
        ["resident memory, one empty volume of 100 GB", mib(size), "<= 20 MiB", verdict(size <= 20 << 20)]])


def stored(found):
    rows = []
    up = found["upload"]
    share, per_gib = up["mib_s"] / up["plain_mib_s"], up["puts"] / up["gib"]
    grown = up["sent_bytes"] / up["block_bytes"]
    rows.append([f"{up['gib']} GiB written in sequence, until all of it is there / plain puts by 4 clients",
                 f"{up['mib_s']:.0f} / {up['plain_mib_s']:.0f} MiB/s = {share:.2f}", ">= 0.8", verdict(share >= 0.8)])
    rows.append(["bytes sent / bytes of live blocks, data that does not compress", f"{grown:.3f}", "<= 1.02", verdict(grown <= 1.02)])
    rows.append(["puts for each GiB at full speed", f"{per_gib:.0f}", "<= 40", verdict(per_gib <= 40)])
    rows.append(["their price at 0.005 $ for 1,000 (S3 standard, us-east-1)", f"{per_gib * 0.000005:.6f} $ for each GiB", "", ""])
    front = found["foreground"]
    worse = front["with"]["beside"]["p99"] / front["without"]["beside"]["p99"]
    rows.append(["4 KiB write + flush beside a bulk writer, p99, with uploads / without",
                 f"{ms(front['with']['beside']['p99'])} / {ms(front['without']['beside']['p99'])} = {worse:.2f}",
                 "<= 1.5", verdict(worse <= 1.5)])
    hot = found["overwrites"]
    rows.append([f"4 KiB overwrites of a hot GiB for {hot['seconds']} s: blocks sent / bytes written",
                 f"{mib(hot['block_bytes'])} / {mib(hot['written_bytes'])} = {hot['block_bytes'] / hot['written_bytes']:.2f}",
                 "reported", ""])
    cold = found["cold"]
    rows.append([f"attach a volume of 100 GB, {cold['gib']} GiB written, {cold['latency_ms']} ms for each request",
                 f"{cold['attach_ms']:.0f} ms", "", ""])
    rows.append(["its first read", f"{cold['first_read_ms']:.0f} ms, {cold['gets']} gets and {mib(cold['received_bytes'])} since the start",
                 "<= 300 ms", verdict(cold["first_read_ms"] <= 300)])
    rows.append(["reads all over it", f"p50 {ms(cold['scattered']['p50'])}, p99 {ms(cold['scattered']['p99'])}", "", ""])
    share = cold["sequential_mib_s"] / cold["plain_mib_s"]
    rows.append(["cold sequential read / plain ranged gets by 16 clients",
                 f"{cold['sequential_mib_s']:.0f} / {cold['plain_mib_s']:.0f} MiB/s = {share:.2f}", ">= 0.7", verdict(share >= 0.7)])
    return table(["", "measured", "target", ""], rows)


def looked(found):
    def seconds(values):
        return f"{statistics.median(values):.2f} s"

    def turns(a, b):
        """The median of the rounds' own ratios."""
        return statistics.median(x / y for x, y in zip(a, b))

    rows = []
    tar, large, many, changed = found["tar"], found["sequential"], found["listing"], found["differences"]
    for when in ("again", "first"):
        share = turns(tar[f"peer_{when}"], tar[f"ours_{when}"])
        rows.append([f"`tar` of {tar['files']:,} files, {mib(tar['bytes'])}, {when}: speed / fuse2fs",
                     f"{seconds(tar[f'ours_{when}'])}, {seconds(tar[f'peer_{when}'])}: {share:.2f}", ">= 0.6", verdict(share >= 0.6)])
    for when in ("again", "first"):
        share = turns(large["plain"], large[f"ours_{when}"])
        rows.append([f"a file of {mib(large['bytes'])} in sequence, {when}: speed / plain read of the image from the page cache",
                     f"{seconds(large[f'ours_{when}'])}, {seconds(large['plain'])}: {share:.2f}", ">= 0.7", verdict(share >= 0.7)])
    for name, key in (("nbdcopy of the export to nothing", "export"), ("fuse2fs", "peer_first")):
        share = turns(large[key], large["ours_first"])
        rows.append([f"the same, first: speed / {name}", f"{seconds(large['ours_first'])}, {seconds(large[key])}: {share:.2f}", "", ""])
    for when in ("again", "first"):
        share = turns(many[f"ours_{when}"], many[f"peer_{when}"])
        rows.append([f"`ls -lR` of {many['files']:,} files, {when}: time / fuse2fs",
                     f"{seconds(many[f'ours_{when}'])}, {seconds(many[f'peer_{when}'])}: {share:.2f}", "<= 3", verdict(share <= 3)])
    most = max(many["worker_bytes"], tar["worker_bytes"])
    rows.append(["most memory of the process that looks at images", mib(most), "<= 150 MB", verdict(most <= 150_000_000)])
    took = statistics.median(changed["seconds"])
    rows.append([f"`checkpoint diff --files`, 20 GB, {changed['files']:,} files, {mib(changed['changed_bytes'])} apart",
                 f"{took:.2f} s", "<= 2 s", verdict(took <= 2)])
    times = found["mount"]["ms"]
    rows.append(["mounting to the end of a first `ls`, median (slowest)", f"{statistics.median(times):.0f} ms ({max(times):.0f} ms)",
                 "<= 100 ms", verdict(statistics.median(times) <= 100)])
    return table(["", "measured", "target", ""], rows)


def shared(figures):
    """Guests beside NBD clients."""
    rows = []
    for row in figures:
        for way, ratio in (("nbd", "to_nbd"), ("nbd_many", "to_nbd_many")):
            name = "NBD" if way == "nbd" else "NBD, many with a call"
            target = (">= 2", verdict(row[ratio] >= 2)) if way == "nbd" else ("", "")
            rows.append([f"4 KiB random {row['what']}, q32", f"{row['vhost_user']:,}", name, f"{row[way]:,}", f"{row[ratio]:.2f}", *target])
    return table(["requests per second", "vhost-user", "beside", "", "ratio", "target", ""], rows)


def asked(figures):
    own = figures["sh -c true, begun in the guest by its own shell"]["ms"]
    rows = []
    for what, found in figures.items():
        target, reached = "", ""
        if what.startswith("create"):
            target, reached = "p50 <= 50 ms", verdict(found["p50_ms"] <= 50)
        elif what.startswith("checkpoint"):
            target, reached = "p50 <= 50 ms", verdict(found["p50_ms"] <= 50)
        elif what == "exec of true":
            above = found["p50_ms"] - own, found["p99_ms"] - own
            target = "above the guest's own: p50 <= 5 ms, p99 <= 20 ms"
            reached = f"{above[0]:.1f}, {above[1]:.1f} ms: {verdict(above[0] <= 5 and above[1] <= 20)}"
        if "p50_ms" in found:
            rows.append([what, found["count"], found["p50_ms"], found["p99_ms"], found["longest_ms"], target, reached])
        else:
            rows.append([what, 1, found["ms"], "", "", target, reached])
    return table(["ms", "times", "p50", "p99", "longest", "target", ""], rows)


SECTIONS = [  # result, title, text, table
    ("compare", "Beside peers", "Medians of the rounds; the ratio is the median of the rounds' own ratios. "
     "nbdkit's memory plugin has no disk at all; qemu-nbd serves files with cache=none from the same disk.\n\n"
     "![requests per second](plots/compare.svg)", compared),
    ("pause", "Checkpoints under load", "", paused),
    ("cost", "What must not grow", "The pool is made synthetically: the store's own structures are real, the "
     "guest's data is not stored (`benches/src/thin_disk.rs`).", costs),
    ("history", "Many checkpoints", "A second volume without checkpoints gets the same requests in turns; the ratios are "
     "medians of the turns, with to without.", histories),
    ("forks", "Many forks", "", forked),
    ("rest", "At rest", "", rested),
    ("guests", "Out of a guest's memory", "One daemon, one thread that asks, no VM: a guest's rings over vhost-user, an NBD client that makes "
     "a call for each request and two for each reply (as libnbd and QEMU do), and one that sends and takes as many with a call as there are. "
     "Medians of the rounds; the ratios are medians of the rounds' own. Reading a block from the kernel's cache takes 2 to 3 us "
     "(\"Ways to reach the disk\" below), whichever way it goes on from there: that bounds the ratio.", shared),
    ("hostile", "Beside hostile clients", "One honest client writes, reads and flushes while others misbehave; all "
     "share the cores, so that the figures contain the attackers' own computing.", attacked),
    ("objects", "The object tier", "The store is moto, an S3 server in Python, on loopback and on the same cores: its own work is in "
     "every figure, and plain requests to it are the yardstick. Latency is added by a proxy.", stored),
    ("look", "Looking back", "Files of checkpoints through `cairn mount`, in turns with fuse2fs (e2fsprogs, over FUSE as well), which "
     "shows the files of the same raw image. It stands in for a loop mount, for images are never given to the host's kernel, and "
     "is slower than one would be: it has one thread and lets the kernel keep less. All bytes are in the page cache. \"first\" is a fresh mount, of which the kernel knows nothing; \"again\" the same once more. "
     "Ratios are medians of the rounds' own.", looked),
    ("api", "The sandbox API", "One client on a connection that stays open, one guest of the image `tiny` under emulation (TCG), on the "
     "same cores. The guest's own shell, a hundred times, says what beginning `sh -c true` takes there without anything of ours.", asked),
    ("io", "Ways to reach the disk and the sockets", "Without the store: its system calls beside io_uring and "
     "tokio-uring, on a file written before and cached, in turns. The first way of each is the store's own; processor "
     "time is of all threads, a client's and the kernel's workers among them. `docs/decisions/0013-io-uring.md` draws "
     "the conclusions.", ways),
]


def write(results, docs):
    """Writes the page and the plots."""
    parts = ["# Performance", "Written by `make bench`; every figure is of the run named above its table. Machines "
             "drift: only ratios within one run compare. `docs/decisions/0007-write-path.md` says what bounds the "
             "figures that are not reached."]
    for name, title, text, show in SECTIONS:
        if name not in results:
            continue
        found = results[name]
        parts.append(f"## {title}")
        parts.append(f"Commit {found['commit']}, {found['day']}, {found['cores']} cores. {text}".strip())
        parts.append(show(found["figures"]))
    if "compare" in results:
        (docs / "plots").mkdir(exist_ok=True)
        (docs / "plots" / "compare.svg").write_text(bars(results["compare"]["figures"]))
    (docs / "PERFORMANCE.md").write_text("\n\n".join(parts) + "\n")
