// The program that people start.
int main() { return 1; }
