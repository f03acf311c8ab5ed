/* lua/line.h - how the host reads lines: libedit with history and completion on a terminal, plain lines elsewhere. */
#ifndef MAV_LINE_H
#define MAV_LINE_H

#include <lua.h>
#include <stdbool.h>

void line_open(lua_State *L);        /* an interactive session begins: loads the history */
char *line_read(const char *prompt); /* without its newline, to be freed; NULL: end of input */
void line_remember(const char *line);

#endif
