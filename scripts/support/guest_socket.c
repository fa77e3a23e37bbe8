/* A client of a Unix socket inside a guest that has no other, linked statically by scripts/interop/in-guest.
 *
 *     guest_socket PATH           sends what comes on standard input, prints what is answered
 *     guest_socket PATH COUNT     makes so many connections, says "held", and keeps them until it is ended
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int connected(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        perror(path);
        exit(3);
    }
    return fd;
}

static void copy(int from, int to) {
    char buffer[8192];
    ssize_t n;
    while ((n = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, n) != n)
            return;
}

int main(int argc, char **argv) {
    if (argc == 2) {
        int fd = connected(argv[1]);
        copy(0, fd);
        shutdown(fd, SHUT_WR);
        copy(fd, 1);
        return 0;
    }
    if (argc != 3)
        return 2;
    for (int i = atoi(argv[2]); i > 0; i--)
        connected(argv[1]);
    puts("held");
    fflush(stdout);
    pause();
    return 0;
}
